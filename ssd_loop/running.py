"""One run and one step of it: what every stage of the loop needs and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ssd_loop import composition, costs, durable, interrupts, progress, store
from ssd_loop.config import RunConfig
from ssd_loop.place import EVENTS, Place
from ssd_loop.problems import Problem
from ssd_loop.store import Finished, Input, Metrics
from ssd_loop.tracking import Tracker
from ssd_loop.workbench import Workbench

Begins = Literal["base", "handed over", "own round"]


@dataclass(frozen=True)
class Run:
    """One run: where it is kept and what it was asked to be.

    Attributes:
        place: Its folders.
        config: Its settings.
        base: The model of round 0, as compositions name it.
        prompts: What is sampled from in every round.
        bench: What it holds open.
        tracker: Where its numbers are sent.
        start: Rounds up to this one are taken as they are; 0 for a run that begins with its base.
        begins: How the start came about: with the base; with rounds handed over by another run; or with
            a round of its own, which has been decided on.
        data: Fingerprints of the prompts and panels.
        goes_past_stops: Whether a stop of the monitors is noted and passed over.
    """

    place: Place
    config: RunConfig
    base: composition.Base
    prompts: tuple[Problem, ...]
    bench: Workbench
    tracker: Tracker
    data: Mapping[str, str]
    start: int = 0
    begins: Begins = "base"
    goes_past_stops: bool = False

    @property
    def base_input(self) -> Input:
        """How manifests name the base."""
        return Input(self.base.content_hash)


def step(
    run: Run,
    n: int,
    stage: str,
    version: int,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Input],
    work: Callable[[Path], Metrics],
) -> Finished:
    """One stage of one round: skipped if finished, else run, timed and tracked."""

    def announced(out: Path) -> Metrics:
        with timed(run, n, stage):
            return work(out)

    done = store.step(
        run.place.stage(n, stage),
        stage=stage,
        round_index=n,
        version=version,
        settings=settings,
        inputs=inputs,
        work=announced,
    )
    run.tracker.log(n, stage, done.manifest.metrics)
    return done


@contextmanager
def timed(run: Run, n: int, stage: str) -> Iterator[None]:
    """Announce some work, log when it begins and ends, and what it costs."""
    progress.say(f"round {n} {stage}")
    log_event(run, n, stage, "started")
    with costs.timed(run.place.folder, n, stage, run.bench.meter, run.bench.size):
        yield
        interrupts.heed()
    log_event(run, n, stage, "finished")


def log_event(run: Run, n: int, stage: str, event: str) -> None:
    """Add a line to the run's log, which people read and nothing decides on."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    row = {"time": now, "round": n, "stage": stage, "event": event}
    durable.append_jsonl(run.place.folder / EVENTS, row)
