"""An interrupt ends a command and seals nothing, also where a library takes it for something else."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssd_loop import cli, interrupts, model_cache, progress, store
from ssd_loop.cli import main
from ssd_loop.costs import Meter
from ssd_loop.engines import Request
from ssd_loop.store import Metrics
from ssd_loop.workbench import MeteredEngine, MeteredSteps
from tests.rows import ScriptedEngine

pytestmark = [
    pytest.mark.usefixtures("signals_put_back"),
    # Python prints an interrupt that it drops, and pytest makes a warning of that.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SIGNALS = [signal.SIGTERM, signal.SIGINT]


def send(sent: signal.Signals) -> None:
    """Send this process a signal, whose handler has run when this returns."""
    os.kill(os.getpid(), sent)
    for _ in range(2):  # Python looks for signals when a loop goes back
        pass


def a_tensor_is_made(sent: signal.Signals) -> None:
    """PyTorch drops whatever is raised while it asks a sequence for its first element."""

    class Slow:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, at: int) -> float:
            send(sent)
            return 0.0

    torch.tensor(Slow(), dtype=torch.float32)


def something_is_finalised(sent: signal.Signals) -> None:
    """Python prints what is raised in a finaliser, and goes on."""

    class Held:
        def __del__(self) -> None:
            send(sent)

    del [Held()][0]


def within(work: Callable[[signal.Signals], None], sent: signal.Signals) -> Callable[[Path], Metrics]:
    def written(out: Path) -> Metrics:
        (out / "part.txt").write_text("half")
        work(sent)
        return {}

    return written


def test_pytorch_still_drops_interrupts() -> None:
    interrupts.listen()
    with pytest.raises(ValueError, match="could not determine the shape"):
        a_tensor_is_made(signal.SIGTERM)


@pytest.mark.parametrize("sent", SIGNALS)
@pytest.mark.parametrize("work", [a_tensor_is_made, something_is_finalised])
def test_an_interrupted_command_says_so_and_its_stage_is_not_finished(
    work: Callable[[signal.Signals], None],
    sent: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "stage"

    def run(options: object, flags: object) -> int:
        store.step(
            folder, stage="s", round_index=0, version=1, settings={}, inputs={}, work=within(work, sent)
        )
        return 0

    monkeypatch.setattr(cli, "_sandbox", run)
    assert main(["sandbox", "a.py"]) == 130
    assert "run the same command to go on" in capsys.readouterr().err.splitlines()[-1]
    assert not folder.exists()


def test_a_dropped_interrupt_ends_work_at_the_next_item_and_nothing_is_published(tmp_path: Path) -> None:
    interrupts.listen()
    something_is_finalised(signal.SIGTERM)
    steps = MeteredSteps(progress._Lines("train", 9, "steps"), Meter(), steps=9, prompts=9, tokens=9)
    with pytest.raises(KeyboardInterrupt):
        steps.advance()
    answers = MeteredEngine(ScriptedEngine(), Meter()).generate([Request((1,), 0, 1.0, 0, 1.0, 8, (2,))])
    with pytest.raises(KeyboardInterrupt):
        next(iter(answers))
    with pytest.raises(KeyboardInterrupt), store.whole_folder(tmp_path / "copy"):
        pass
    with pytest.raises(KeyboardInterrupt):
        model_cache.cached(tmp_path / "cache", "model", lambda out: None)
    assert not (tmp_path / "copy").exists()
    assert [path.name for path in (tmp_path / "cache").iterdir() if "." not in path.name] == []


def test_the_next_command_begins_afresh(tmp_path: Path) -> None:
    interrupts.listen()
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupts.heed()
    interrupts.listen()
    interrupts.heed()


def test_an_error_without_an_interrupt_is_that_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(options: object, flags: object) -> int:
        raise ValueError("a bug")

    monkeypatch.setattr(cli, "_sandbox", run)
    with pytest.raises(ValueError, match="a bug"):
        main(["sandbox", "a.py"])
