"""Whole runs to compare with, made once per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash import harness
from tests.crash.harness import Unbroken


@pytest.fixture(scope="package", autouse=True)
def adopting() -> Iterator[None]:
    """What a killed run leaves behind becomes this process's child, and is seen."""
    harness.adopt_orphans()
    yield
    harness.adopt_orphans(False)


@pytest.fixture(scope="session")
def on_transformers(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    return harness.unbroken(tmp_path_factory.mktemp("unbroken") / "run", tiny_llama, "transformers")


@pytest.fixture(scope="session")
def on_vllm(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    return harness.unbroken(tmp_path_factory.mktemp("unbroken") / "run", tiny_qwen3, "vllm")
