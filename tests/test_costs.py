"""What attempts cost: rows that survive kills, torn lines and full disks, and the ledger made of them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ssd_loop import costs, durable
from ssd_loop.costs import Cost, Meter, ModelSize, Work

SIZE = ModelSize(matmul=1000, adapter=10)
# A row as versions before this one wrote them: one for each attempt, none for a killed one.
OLD = {"round": 1, "stage": "train", "seconds": 36.0, "tokens": 500, "device_hours": 0.01, "finished": True}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / costs.COSTS).read_text().splitlines()]


def booking_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "costs"]


# One attempt


def test_an_attempt_leaves_a_row_at_each_end_and_counts_its_work(tmp_path: Path) -> None:
    meter = Meter()
    meter.add(Work(drawn_tokens=99))  # before the attempt, so not of it
    with costs.timed(tmp_path, 2, "sample", meter, SIZE):
        meter.add(Work(prompt_tokens=30, drawn_tokens=12))
    first, last = rows(tmp_path)
    assert "finished" not in first
    assert last["finished"] is True
    assert first["attempt"] == last["attempt"]
    cost = costs.read(tmp_path)[2, "sample"]
    assert (cost.attempts, cost.failed, cost.killed) == (1, 0, 0)
    assert (cost.sampled_tokens, cost.sampled_prompt_tokens, cost.evaluated_tokens) == (12, 30, 0)
    assert cost.flops == 2 * 1000 * 42


def test_rows_come_while_the_attempt_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "EVERY_S", 0.02)
    meter = Meter()
    began = time.monotonic()
    with costs.timed(tmp_path, 1, "evaluate", meter):
        assert len(booking_threads()) == 1
        while len(rows(tmp_path)) < 4:
            meter.add(Work(drawn_tokens=1))
            time.sleep(0.005)
    took = time.monotonic() - began
    found = rows(tmp_path)
    assert sum("finished" in row for row in found) == 1
    assert took - 1.0 < sum(row["seconds"] for row in found) < took + 0.01
    assert costs.read(tmp_path)[1, "evaluate"].evaluated_tokens == meter.read().drawn_tokens


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failed_attempt_counts_and_its_thread_ends(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), costs.timed(tmp_path, 1, "train"):
        raise error
    assert not booking_threads()
    cost = costs.read(tmp_path)[1, "train"]
    assert (cost.attempts, cost.failed, cost.killed) == (1, 1, 0)
    assert cost.lost_seconds == cost.seconds


CHILD = """
import sys, time
from pathlib import Path
from ssd_loop import costs
costs.EVERY_S = 0.05
meter = costs.Meter()
with costs.timed(Path(sys.argv[1]), 1, "sample", meter):
    meter.add(costs.Work(drawn_tokens=7))
    print("drawn", flush=True)
    {then}
"""


def child(folder: Path, then: str) -> subprocess.Popen[str]:
    code = CHILD.format(then=then)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_a_killed_attempt_has_left_its_time_and_tokens(tmp_path: Path) -> None:
    process = child(tmp_path, "time.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == "drawn\n"
    while len(rows(tmp_path)) < 4:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with costs.timed(tmp_path, 1, "sample"):
        pass
    cost = costs.read(tmp_path)[1, "sample"]
    assert (cost.attempts, cost.failed, cost.killed) == (2, 0, 1)
    assert cost.sampled_tokens == 7
    assert 0.1 < cost.lost_seconds <= cost.seconds


def test_the_thread_never_keeps_a_process_alive(tmp_path: Path) -> None:
    process = child(tmp_path, "costs.EVERY_S = 600; time.sleep(0.1); sys.exit(3)")
    assert process.wait(timeout=20) == 3
    assert costs.read(tmp_path)[1, "sample"].failed == 1


def test_an_attempt_inside_another_is_not_counted_twice(tmp_path: Path) -> None:
    meter = Meter()
    began = time.monotonic()
    with costs.timed(tmp_path, 2, "sample", meter):
        meter.add(Work(drawn_tokens=1))
        with costs.timed(tmp_path, 1, "merge", meter):
            time.sleep(0.1)
            meter.add(Work(scored_tokens=5))
        meter.add(Work(drawn_tokens=2))
    took = time.monotonic() - began
    found = costs.read(tmp_path)
    assert found[2, "sample"].sampled_tokens == 3
    assert found[1, "merge"].scored_tokens == 5
    assert found[2, "sample"].scored_tokens == 0
    assert found[1, "merge"].seconds >= 0.1
    assert found[2, "sample"].seconds + found[1, "merge"].seconds < took + 0.01


def test_a_disk_that_fills_up_costs_rows_and_not_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "EVERY_S", 0.01)
    log, aside, meter = tmp_path / costs.COSTS, tmp_path / "aside", Meter()
    with costs.timed(tmp_path, 1, "sample", meter):
        aside.hardlink_to(log)
        full(log)
        meter.add(Work(drawn_tokens=3))
        time.sleep(0.1)
        aside.replace(log)
        meter.add(Work(drawn_tokens=4))
    assert costs.read(tmp_path)[1, "sample"].sampled_tokens == 7
    with costs.timed(tmp_path, 1, "sample", meter):
        full(log)
    with pytest.raises(OSError, match="No space"), costs.timed(tmp_path, 1, "sample", meter):
        raise AssertionError("nothing begins that cannot be logged")
    assert meter.attempt is None


def full(log: Path) -> None:
    """Put a file in place of the log that no byte can be written to."""
    link = log.with_name("full")
    link.symlink_to("/dev/full")
    link.replace(log)


# Time


def test_only_the_time_of_work_is_the_devices() -> None:
    began, meter = time.monotonic(), Meter()
    time.sleep(0.05)
    with meter.working():
        time.sleep(0.05)
        under_way = meter.read()
    time.sleep(0.05)
    elapsed = time.monotonic() - began
    assert 0.05 <= under_way.busy_seconds <= meter.read().busy_seconds <= elapsed - 0.1


# The log


def test_a_torn_line_takes_no_other_with_it(tmp_path: Path) -> None:
    with costs.timed(tmp_path, 1, "train"):
        pass
    with (tmp_path / costs.COSTS).open("a") as file:
        file.write('{"attempt": "x", "round": 1, "sta')
    with costs.timed(tmp_path, 2, "train"):
        pass
    assert {key: cost.attempts for key, cost in costs.read(tmp_path).items()} == {
        (1, "train"): 1,
        (2, "train"): 1,
    }


def test_a_line_that_lost_nothing_but_its_end_still_counts(tmp_path: Path) -> None:
    path = tmp_path / costs.COSTS
    path.write_text(json.dumps(OLD))
    durable.append_jsonl(path, OLD)
    assert costs.read(tmp_path)[1, "train"].attempts == 2


ODD_ROWS = (
    *({"round": "1"}, {"round": None}, {"stage": 3}, {"seconds": -1.0}, {"seconds": "2"}, {"tokens": None}),
    *({"attempt": []}, {"attempt": "a", "busy_seconds": [1]}, {"attempt": "a", "flops": True}),
    *({"attempt": "a", "seconds": float("inf")}, {"attempt": "a", "drawn_tokens": {}}),
)


@pytest.mark.parametrize(
    "text",
    ["", "\n", "null\n", "\x00\x00\x00", "{", "[]\n", *(json.dumps(OLD | odd) + "\n" for odd in ODD_ROWS)],
)
def test_what_is_no_row_is_skipped(tmp_path: Path, text: str) -> None:
    (tmp_path / costs.COSTS).write_text(text)
    assert costs.read(tmp_path) == {}
    with costs.timed(tmp_path, 1, "train"):
        pass
    assert costs.read(tmp_path)[1, "train"].attempts == 1


def test_rows_of_older_versions_are_read() -> None:
    failed = OLD | {"stage": "sample", "tokens": 70, "finished": False}
    found = costs.summed([OLD, OLD, failed])
    train, sample = found[1, "train"], found[1, "sample"]
    assert (train.attempts, train.failed, train.killed, train.seconds) == (2, 0, 0, 72.0)
    assert (train.trained_tokens, sample.sampled_tokens, sample.failed) == (1000, 70, 1)
    assert train.metered_seconds == 0.0


# Operations


def test_operations_by_hand() -> None:
    work = Work(prompt_tokens=1, drawn_tokens=2, scored_tokens=3, trained_prompt_tokens=4, trained_tokens=5)
    assert costs.flops(work, SIZE) == 2 * 1000 * 6 + (4 * 1000 + 6 * 10) * 9


SHAPES = {
    "model.embed_tokens.weight": (100, 8),
    "model.layers.0.self_attn.q_proj.weight": (16, 8),
    "model.layers.0.self_attn.q_proj.bias": (16,),
    "model.layers.0.mlp.experts.gate_up_proj": (4, 20, 8),
    "model.layers.0.mlp.experts.gate_up_proj_bias": (4, 20),
    "model.layers.0.mlp.shared_experts.up_proj.weight": (10, 8),
    "model.norm.weight": (8,),
}


def test_an_embedding_counts_once_and_only_as_output_layer() -> None:
    layers = 128 + 640 + 80
    tied = costs.matmul_parameters(SHAPES, embedding="model.embed_tokens.weight", head="lm_head.weight")
    assert tied == layers + 800
    untied = SHAPES | {"lm_head.weight": (100, 8)}
    assert tied == costs.matmul_parameters(
        untied, embedding="model.embed_tokens.weight", head="lm_head.weight"
    )


def test_of_a_mixture_the_experts_that_see_a_token_count() -> None:
    found = costs.matmul_parameters(
        SHAPES, embedding="model.embed_tokens.weight", head="lm_head.weight", active_share=0.5
    )
    assert found == 800 + 128 + 320 + 80


# The ledger


SPENT = {
    (0, "evaluate"): Cost(
        seconds=3600, attempts=1, evaluated_tokens=10, metered_seconds=3600, busy_seconds=1800
    ),
    (1, "sample"): Cost(
        seconds=360, attempts=2, killed=1, lost_seconds=100, sampled_tokens=5, metered_seconds=360
    ),
    (1, "train"): Cost(
        seconds=360, attempts=1, trained_tokens=4, trained_prompt_tokens=6, metered_seconds=360
    ),
    (2, "sample"): Cost(seconds=720, attempts=1, sampled_tokens=5),
    (2, "sweep"): Cost(seconds=3600, attempts=1, failed=1, evaluated_tokens=1, flops=7),
}


def test_the_ledger_by_hand() -> None:
    found = costs.ledger(SPENT, price_per_device_hour=3.0, gain_points=2.0)
    assert [row["round"] for row in found["rounds"]] == [0, 1, 2]
    assert found["rounds"][1]["seconds"] == 720
    assert list(found["rounds"][1]["stages"]) == ["sample", "train"]
    assert list(found["stages"]) == ["evaluate", "sample", "train", "sweep"]
    assert found["stages"]["sample"]["sampled_tokens"] == 10
    total = found["total"]
    assert total["device_hours"] == pytest.approx(2.4)
    assert total["money"] == pytest.approx(7.2)
    assert (total["attempts"], total["failed"], total["killed"], total["flops"]) == (6, 1, 1, 7)
    assert (total["evaluated_tokens"], total["trained_prompt_tokens"]) == (11, 6)
    assert total["busy_share"] == pytest.approx(1800 / 4320)
    assert found["ratio_to_one_round"] == pytest.approx(2.4 / (620 / 3600))  # 100 of the 720 s were lost
    assert found["device_hours_per_point"] == pytest.approx(1.2)
    assert found["money_per_point"] == pytest.approx(3.6)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("gain", [None, 0.0, -1.0])
def test_without_a_gain_no_point_has_a_cost(gain: float | None) -> None:
    found = costs.ledger(SPENT, price_per_device_hour=3.0, gain_points=gain)
    assert found["device_hours_per_point"] is None
    assert found["money_per_point"] is None


def test_an_unknown_price_gives_hours_and_no_money() -> None:
    found = costs.ledger(SPENT, gain_points=2.0)
    assert found["total"]["money"] is None
    assert found["money_per_point"] is None
    assert found["device_hours_per_point"] == pytest.approx(1.2)


def test_a_run_that_has_not_trained_has_no_ratio() -> None:
    assert costs.ledger({(0, "evaluate"): Cost(seconds=5)})["ratio_to_one_round"] is None
    assert costs.ledger({})["total"]["busy_share"] is None


@pytest.mark.parametrize(
    ("stage", "drawn"),
    [("sample", "sampled"), ("evaluate", "evaluated"), ("seed_01", "evaluated"), ("final", "evaluated")],
)
def test_tokens_are_classed_by_what_they_are_for(tmp_path: Path, stage: str, drawn: str) -> None:
    meter = Meter()
    with costs.timed(tmp_path, 1, stage, meter):
        meter.add(Work(drawn_tokens=3, prompt_tokens=4, trained_tokens=5, trained_prompt_tokens=6))
    entry = costs.ledger(costs.read(tmp_path))["stages"][stage]
    kinds = {name: entry[name] for name in entry if name.endswith("_tokens") and entry[name]}
    assert kinds == {
        f"{drawn}_tokens": 3,
        f"{drawn}_prompt_tokens": 4,
        "trained_tokens": 5,
        "trained_prompt_tokens": 6,
    }


def test_the_table_shows_stages_and_the_total() -> None:
    text = io.StringIO()
    Console(file=text, width=150).print(costs.table(costs.ledger(SPENT, price_per_device_hour=3.0), "Costs"))
    shown = text.getvalue()
    for part in ("Costs", "evaluate", "sweep", "total", "8,640", "2.400", "7.20", "42%"):
        assert part in shown


def test_a_run_without_a_log_has_cost_nothing(tmp_path: Path) -> None:
    assert costs.read(tmp_path) == {}
    assert not os.listdir(tmp_path)
