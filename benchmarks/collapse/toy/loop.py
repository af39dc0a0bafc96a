"""One run of the toy through the engine's own stages, with a provocation from a round on.

The loop is `ssd_loop.controller.run_rounds` with one stage more: `provoke`, between `filter` and `train`,
writes a ``kept.parquet`` of its own. Every decision is the engine's; the run ends at the first stop, as
the engine's would. Healthy rounds before an onset are made once for each seed and copied.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.collapse.toy import engine
from benchmarks.collapse.toy.modes import ONSET, Context, Mode
from ssd_loop import controller, costs, filtering, store
from ssd_loop.errors import SsdLoopError
from ssd_loop.figures import read_report
from ssd_loop.measuring import evaluate
from ssd_loop.monitors.decision import Decision
from ssd_loop.place import Place
from ssd_loop.records import Dropped, Sample, derive_seed, read_rows, write_rows
from ssd_loop.running import Run, step
from ssd_loop.store import Finished, Metrics
from ssd_loop.verdicts import discard, monitor
from ssd_loop.weights import Model, base_model, merge

PROVOKE, PROVOKE_VERSION = "provoke", 1
PREFIX = Mode("prefix")  # nothing is provoked
Say = Callable[[str], None]


def drive(root: Path, mode: Mode, seed: int, rounds: int, model: Path, say: Say) -> dict[str, Any]:
    """One run to its end or its first stop, and what was seen of it.

    Args:
        root: Holds ``data/``, ``rounds/`` and ``checkpoints/``.
        mode: What is provoked, and when.
        seed: The run's.
        rounds: At most so many.
        model: Folder of the toy model.
        say: Told of every round.
    """
    name = f"{mode.key}-s{seed}"
    if mode.onset > 1 and mode.expected:  # controls are one run for each seed: nothing to share
        _share(root, mode, seed, min(mode.onset - 1, rounds), model, say)
    return _drive(root, name, mode, seed, rounds, model, say)


def _share(root: Path, mode: Mode, seed: int, rounds: int, model: Path, say: Say) -> None:
    """Copy the healthy rounds of this seed, made first where they are missing."""
    panels = "-".join(mode.panels)
    name, own = f"prefix-{panels}-s{seed}", Place(root, f"{mode.key}-s{seed}")
    if own.folder.exists():
        return
    _drive(root, name, replace(PREFIX, panels=mode.panels), seed, rounds, model, say)
    shared = Place(root, name)
    for old, new in ((shared.weights, own.weights), (shared.folder, own.folder)):
        partial = new.with_name(f"{new.name}.copy")
        for leftover in (partial, new):
            shutil.rmtree(leftover, ignore_errors=True)
        shutil.copytree(old, partial, symlinks=True)
        partial.rename(new)


def _drive(
    root: Path, name: str, mode: Mode, seed: int, rounds: int, model: Path, say: Say
) -> dict[str, Any]:
    measured = {"evaluate": {"panels": list(mode.panels)}}
    gentle = engine.config(model, root / "data", seed, measured)
    provoked = engine.config(model, root / "data", seed, measured, mode.settings)
    error = None
    with engine.opened(root, name, gentle) as run:
        state = State(run)
        for n in range(1, rounds + 1):
            now = replace(run, config=provoked) if mode.provokes(n) else run
            with mode.patch() if mode.provokes(n) else nullcontext():
                try:
                    decision = state.round(now, n, mode if mode.provokes(n) else None)
                except SsdLoopError as failed:  # a training that diverged, or nothing left to train on
                    error = f"round {n}: {failed}"
                    say(f"{name}: {error}")
                    break
            say(f"{name} round {n}: {decision.verdict} {decision.attribution} {_alarms(decision)}")
            if decision.verdict == "stop":
                break
        return {
            "mode": mode.key,
            "seed": seed,
            "rounds": [_seen(run.place, decision) for decision in state.decisions],
            "error": error,
        }


class State:
    """What one round hands to the next."""

    def __init__(self, run: Run) -> None:
        self.base = base_model(run)
        self.model, self.kept, self.history = controller.begin(run)
        self.filtered: list[Finished] = []
        self.decisions: list[Decision] = []

    def round(self, run: Run, n: int, mode: Mode | None) -> Decision:
        """Sample, filter, provoke, train, merge, evaluate, monitor."""
        config = run.config
        policy = self.base if config.sample.policy == "base" else self.model
        samples = controller.sample(run, n, policy, self.decisions)
        self.filtered.append(controller.filter_samples(run, n, samples))
        self.kept.append(provoke(run, n, mode, self.filtered) if mode and mode.rows else self.filtered[-1])
        begun = self.base if config.train.start_from == "base" else self.model
        adapter = controller.train(run, n, begun, self.kept, self.history[0], self.decisions)
        if "cliff_step" in adapter.manifest.metrics:
            decision = discard(run, n, adapter, self.history)
        else:
            self.model = merge(run, n, begun, adapter, self.history[0])
            self.history.append(evaluate(run, n, self.model, self.history[0]))
            decision = self._decide(run, n, self.model)
        self.decisions.append(decision)
        return decision

    def _decide(self, run: Run, n: int, model: Model) -> Decision:
        return monitor(run, n, model, self.kept[-1], self.history, self.decisions)


def provoke(run: Run, n: int, mode: Mode, filtered: Sequence[Finished]) -> Finished:
    """The rows that a provocation trains on, as a stage like `filter`."""
    rows = mode.rows
    assert rows is not None

    def work(out: Path) -> Metrics:
        found = [read_rows(store.checked(done) / filtering.KEPT, Sample) for done in filtered]
        rng = random.Random(derive_seed(run.config.sample.seed, n, PROVOKE))
        chosen = rows(Context(run, n, found[-1], found[:-1], rng))
        write_rows(out / filtering.KEPT, Sample, chosen)
        write_rows(out / filtering.DROPPED, Dropped, [])
        return {"kept": len(chosen), "kept_tokens": sum(len(row.token_ids) for row in chosen)}

    inputs = {f"kept_{done.manifest.round:03d}": done.as_input for done in filtered}
    settings = {"mode": mode.key, "seed": run.config.sample.seed}
    return step(run, n, PROVOKE, PROVOKE_VERSION, settings, inputs, work)


def _alarms(decision: Decision) -> list[str]:
    return [name for name, reading in decision.monitors.items() if reading.alarm]


def _seen(place: Place, decision: Decision) -> dict[str, Any]:
    """One round in numbers."""
    n = decision.round
    spent = {stage: cost.seconds for (r, stage), cost in costs.read(place.folder).items() if r == n}
    measured = store.finished(place.stage(n, "evaluate"))
    numbers: Mapping[str, Any] = measured.manifest.metrics if measured else {}
    shown = {k: round(v, 4) for k, v in numbers.items() if isinstance(v, float) and not k.endswith("_se")}
    return {
        "round": n,
        "verdict": decision.verdict,
        "kind": decision.kind,
        "attribution": decision.attribution,
        "look": decision.look,
        "alarms": _alarms(decision),
        "t": {k: round(r.t, 2) for k, r in decision.monitors.items() if r.t is not None},
        "threshold": {k: r.threshold for k, r in decision.monitors.items() if r.alarm},
        "seconds": {stage: round(value, 2) for stage, value in spent.items()},
        "numbers": shown,
    }


def baseline(root: Path, name: str) -> dict[str, Any]:
    """The numbers of a run's round 0."""
    done = store.finished(Place(root, name).stage(0, "evaluate"))
    assert done is not None
    report = read_report(done.path)
    found: dict[str, Any] = json.loads(json.dumps(done.manifest.metrics))
    return found | {"signal": (report.get("signal") or {}).get("label")}


__all__ = ["ONSET", "State", "baseline", "drive", "provoke"]
