"""Tiny models, built once per session."""

import os
from pathlib import Path

# As the command line does, before torch is imported: spinning threads starve whatever runs beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with two stop tokens."""
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 with two stop tokens."""
    return tiny.build("qwen3", tmp_path_factory.mktemp("models") / "qwen3")
