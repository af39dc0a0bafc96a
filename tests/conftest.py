"""Tiny models, built once per session."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import ssd_loop.workbench  # noqa: F401  # before torch is imported, whose libraries it settles
from ssd_loop import interrupts
from tests import tiny


@pytest.fixture
def signals_put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the command line changes when it listens for signals is afterwards as it was."""
    monkeypatch.setattr(interrupts, "_received", False)
    handlers = {sent: signal.getsignal(sent) for sent in (signal.SIGTERM, signal.SIGINT)}
    yield
    for sent, handler in handlers.items():
        signal.signal(sent, handler)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with two stop tokens."""
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 with two stop tokens."""
    return tiny.build("qwen3", tmp_path_factory.mktemp("models") / "qwen3")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small only wait for each other on several threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["bubblewrap", "landlock"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test in each sandbox that works here; its name."""
    from ssd_loop import sandbox
    from ssd_loop.errors import SandboxUnavailableError
    from ssd_loop.sandbox import landlock, runs

    name: str = request.param
    if name == "landlock":
        try:
            launcher = runs._first_to_start(landlock.candidates())
        except SandboxUnavailableError as error:
            pytest.skip(str(error))
        monkeypatch.setattr(runs, "_launcher", lambda: (launcher, "asked for by a test"))
    elif sandbox.isolation() != name:
        pytest.skip(sandbox.why_not_bubblewrap())
    return name
