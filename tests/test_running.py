"""One step of a run: skipped if finished, else logged with what it cost."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from ssd_loop import composition, costs, interrupts, models
from ssd_loop.config import RunConfig
from ssd_loop.costs import Work
from ssd_loop.durable import read_jsonl
from ssd_loop.place import EVENTS, Place
from ssd_loop.running import Run, step, timed
from ssd_loop.store import Finished, Metrics
from ssd_loop.tracking import Tracker
from ssd_loop.workbench import Workbench


@pytest.fixture
def run(tmp_path: Path, tiny_llama: Path) -> Run:
    config = RunConfig.model_validate({"model": {"name": str(tiny_llama)}, "track": {"mode": "disabled"}})
    base = models.resolve(str(tiny_llama), None, "auto")
    place = Place(tmp_path, "mine")
    place.folder.mkdir(parents=True)
    described = composition.describe_base(config, base, "hash")
    bench = Workbench(config, base)
    return Run(
        place, config, described, (), bench, Tracker("disabled", config, "mine", "x", place.folder), {}
    )


def drawn(run: Run, n: int = 1) -> Finished:
    def work(out: Path) -> Metrics:
        (out / "rows").write_text("rows")
        with run.bench.meter.working():
            time.sleep(0.02)
        run.bench.meter.add(Work(prompt_tokens=10, drawn_tokens=4))
        return {"tokens": 4}

    return step(run, n, "sample", 1, {}, {}, work)


def test_a_step_is_logged_with_what_its_engine_did(run: Run) -> None:
    assert drawn(run).manifest.metrics == {"tokens": 4}
    cost = costs.read(run.place.folder)[1, "sample"]
    assert (cost.attempts, cost.sampled_tokens, cost.sampled_prompt_tokens) == (1, 4, 10)
    assert cost.flops == 2 * run.bench.size.matmul * 14 > 0
    assert 0.02 <= cost.busy_seconds <= cost.seconds


def test_a_finished_step_costs_nothing_again(run: Run) -> None:
    drawn(run)
    before = read_jsonl(run.place.folder / costs.COSTS)
    drawn(run)
    assert read_jsonl(run.place.folder / costs.COSTS) == before


def test_a_step_pays_for_no_work_but_its_own(run: Run) -> None:
    drawn(run, 1)
    drawn(run, 2)
    found = costs.read(run.place.folder)
    assert found[1, "sample"].sampled_tokens == found[2, "sample"].sampled_tokens == 4


def test_weights_rebuilt_within_a_step_are_booked_where_they_belong(run: Run) -> None:
    with timed(run, 3, "evaluate"):
        with timed(run, 1, "merge"):
            time.sleep(0.05)
        run.bench.meter.add(Work(drawn_tokens=2))
    found = costs.read(run.place.folder)
    assert found[1, "merge"].seconds >= 0.05
    assert (found[3, "evaluate"].evaluated_tokens, found[1, "merge"].evaluated_tokens) == (2, 0)


def test_a_step_that_fails_has_no_end_in_the_events(run: Run) -> None:
    def work(out: Path) -> Metrics:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        step(run, 1, "train", 1, {}, {}, work)
    assert_never_ended(run)


def test_neither_has_one_that_swallowed_a_signal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(out: Path) -> Metrics:
        monkeypatch.setattr(interrupts, "_received", True)
        return {}

    with pytest.raises(KeyboardInterrupt):
        step(run, 1, "train", 1, {}, {}, work)
    assert_never_ended(run)


def assert_never_ended(run: Run) -> None:
    events = [json.loads(line)["event"] for line in (run.place.folder / EVENTS).read_text().splitlines()]
    assert events == ["started"]
    assert costs.read(run.place.folder)[1, "train"].failed == 1
