"""Weights & Biases: each round once, also over a restart, and never in the way of the training."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ssd_loop import costs
from ssd_loop.config import RunConfig, TrackConfig
from ssd_loop.durable import append_jsonl, write_json
from ssd_loop.errors import ConfigError
from ssd_loop.filtering import DROPPED
from ssd_loop.monitors.decision import DECISION, Decision, Reading
from ssd_loop.place import round_name
from ssd_loop.records import Dropped, Sample, write_rows
from ssd_loop.sampling import SAMPLES
from ssd_loop.tracking import Mode, Tracker, has_key, resolve_mode
from ssd_loop.tracking_views import (
    COLUMNS,
    PROMPTS_SHOWN,
    TABLE,
    chosen,
    decided,
    sample_rows,
    sections,
    spent,
    workspace,
)
from tests.rows import sample

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a netrc and an environment without a key."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "NETRC", "WANDB_MODE", "WANDB_DIR", "WANDB_DATA_DIR", "WANDB_SERVICE"):
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)
    return tmp_path


def netrc(path: Path, host: str) -> Path:
    path.write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")
    path.chmod(0o600)
    return path


def test_auto_is_offline_without_a_key() -> None:
    assert not has_key()
    assert resolve_mode(TrackConfig()) == "offline"


def test_auto_is_online_with_a_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert resolve_mode(TrackConfig()) == "online"
    assert resolve_mode(TrackConfig(mode="online")) == "online"
    assert resolve_mode(TrackConfig(mode="offline")) == "offline"


def test_an_empty_key_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert not has_key()


def test_a_key_in_netrc_counts(no_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc(no_key / ".netrc", "api.wandb.ai")
    assert resolve_mode(TrackConfig()) == "online"
    monkeypatch.setenv("NETRC", str(no_key / "nowhere"))
    assert not has_key()
    monkeypatch.setenv("NETRC", str(netrc(no_key / "other", "example.org")))
    assert not has_key()


def test_a_broken_netrc_is_no_key(no_key: Path) -> None:
    (no_key / ".netrc").write_text("machine\nnonsense here")
    assert resolve_mode(TrackConfig()) == "offline"


def test_online_without_a_key_is_refused_with_the_ways_on() -> None:
    with pytest.raises(ConfigError, match="WANDB_API_KEY") as caught:
        resolve_mode(TrackConfig(mode="online"))
    assert "--track.mode offline" in str(caught.value)


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_mode_that_was_asked_for_stays(mode: Mode) -> None:
    assert resolve_mode(TrackConfig(mode=mode)) == mode


def tracker(folder: Path, mode: Mode = "offline", **track: Any) -> Tracker:
    folder.mkdir(exist_ok=True)
    return Tracker(mode, RunConfig(track=TrackConfig(**track)), "mine", "abcdef123456", folder)


def decision(n: int, verdict: Any = "continue") -> Decision:
    """What the monitors say of a round: one measured against a limit, one without a value."""
    richness = Reading(
        "collapse", 2.0 - n / 10, 2.0, 0.1, se=0.1, t=n - 3.0, slow=0.5, threshold=3.25, slow_threshold=1.5
    )
    unknown = Reading("report", None, None, None, reason="fewer than 64 KiB of answers")
    readings = {"richness": richness, "compression_ratio": unknown}
    return Decision(n, verdict, "none", "the reason", "none", n, 1, readings)


def write_round(folder: Path, n: int, prompts: int = 3) -> None:
    """What a round leaves of its samples, its filter and its decision."""
    round_folder = folder / round_name(n)
    for stage in ("sample", "filter", "monitor"):
        (round_folder / stage).mkdir(parents=True)
    ids = [f"prompt{number}" for number in range(prompts)]
    rows = [
        sample(f"{name} round {n} sample {i}", prompt_id=name, sample_index=i) for name in ids for i in (0, 1)
    ]
    dropped = [Dropped("prompt0", 0, "stub"), Dropped("prompt1", 1, "empty")]
    write_rows(round_folder / "sample" / SAMPLES, Sample, rows)
    write_rows(round_folder / "filter" / DROPPED, Dropped, dropped)
    write_json(round_folder / "monitor" / DECISION, decision(n).to_json())


def log_rounds(one: Tracker, rounds: range) -> None:
    for n in rounds:
        if n and not (one.folder / round_name(n)).exists():
            write_round(one.folder, n)
        if n:
            one.log(n, "sample", {"tokens": 100 + n, "note": "not a number"})
        one.log(n, "evaluate", {"heldout_pass_at_1": n / 10})
        if n:
            one.log(n, "monitor", {"best_round": n, "verdict": "continue"})


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    one = tracker(tmp_path / "run", "disabled")
    log_rounds(one, range(2))
    one.stopped(decision(1, "stop"))
    one.report(tmp_path / "run" / "report.html")
    one.close(0)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["round_001"]


def test_what_breaks_in_tracking_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = tracker(tmp_path / "run")
    (tmp_path / "run" / "wandb").write_text("a file where W&B wants a folder")
    with caplog.at_level(logging.WARNING):
        log_rounds(one, range(3))
        one.close(0)
    assert len(caplog.records) == 1
    assert "the run goes on" in caplog.text


def test_closing_before_anything_was_sent_is_quiet(tmp_path: Path) -> None:
    tracker(tmp_path / "run").close(1)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_decision_is_sent_without_its_nulls() -> None:
    assert decided(decision(2, "stop")) == {
        "monitor/verdict": 2,
        "monitor/alarms": 0,
        "monitor/best_round": 2,
        "monitor/look": 1,
        "monitor/kind": "none",
        "monitor/attribution": "none",
        "monitor/reason": "the reason",
        "monitor/richness/value": 1.8,
        "monitor/richness/t": -1.0,
        "monitor/richness/slow": 0.5,
        "monitor/richness/threshold": 3.25,
        "monitor/richness/slow_threshold": 1.5,
    }


def test_what_is_not_finite_is_not_sent() -> None:
    diverged = Reading("guard", math.nan, 0.0, 0.0, t=-math.inf, alarm=True)
    sent = decided(Decision(1, "stop", "guard", "NaN", "diverged", 0, 1, {"not_finite": diverged}))
    assert sent["monitor/alarms"] == 1
    assert not [name for name in sent if name.startswith("monitor/not_finite/")]


def test_costs_are_this_rounds_and_the_runs_so_far(tmp_path: Path) -> None:
    assert spent(tmp_path, 0, 0.0) == {}
    common = {"busy_seconds": 1.0, "device_hours": 0.0}
    for n, stage, seconds in ((0, "evaluate", 1800.0), (1, "sample", 900.0), (2, "sample", 7.0)):
        row = {"round": n, "stage": stage, "attempt": f"{n}", "seconds": seconds, "drawn_tokens": 10 + n}
        append_jsonl(tmp_path / costs.COSTS, row | common | {"finished": True})
    found = spent(tmp_path, 1, 2.0)
    assert found["cost/device_hours"] == 0.75
    assert found["cost/money"] == 1.5
    assert found["cost/sample_seconds"] == 900.0
    assert "cost/evaluate_seconds" not in found
    assert (found["cost/evaluated_tokens"], found["cost/sampled_tokens"]) == (10, 11)
    assert "cost/money" not in spent(tmp_path, 1, 0.0)


def test_the_same_prompts_are_shown_whatever_their_order_and_company() -> None:
    ids = [f"prompt{number}" for number in range(500)]
    shown = chosen(ids, 32)
    assert len(set(shown)) == 32
    assert chosen(reversed(ids), 32) == shown
    assert set(chosen([*ids, *ids, "another"], 32)) <= {*shown, "another"}
    assert chosen(ids[:3], 32) == chosen(ids[2::-1], 32)
    assert shown != sorted(shown)


def test_samples_are_shown_with_what_the_filter_said(tmp_path: Path) -> None:
    assert sample_rows(tmp_path, 0) == []
    write_round(tmp_path, 1)
    rows = {row[1]: row for row in sample_rows(tmp_path, 1)}
    assert len(rows) == 3
    assert dict(zip(COLUMNS, rows["prompt0"], strict=True)) == {
        "round": 1,
        "prompt_id": "prompt0",
        "finish_reason": "stop",
        "filter": "stub",
        "text": "prompt0 round 1 sample 0",
    }
    assert rows["prompt1"][3] == "kept"  # its second sample was dropped, and is not shown


def test_a_table_of_samples_is_bounded(tmp_path: Path) -> None:
    write_round(tmp_path, 3, prompts=200)
    write_round(tmp_path, 4, prompts=200)
    first, second = (sample_rows(tmp_path, n) for n in (3, 4))
    assert len(first) == PROMPTS_SHOWN
    assert [row[1] for row in first] == [row[1] for row in second]


METRICS = [
    "round",
    "cost/device_hours",
    "evaluate/heldout_pass_at_1",
    "evaluate/heldout_pass_at_1_se",
    "evaluate/heldout_pass_at_4",
    "evaluate/probe_distinct_at_2",
    "evaluate/reference_nll",
    "monitor/compression_ratio/value",
    "monitor/reason",
    "monitor/richness/slow",
    "monitor/richness/slow_threshold",
    "monitor/richness/t",
    "monitor/richness/threshold",
    "monitor/richness/value",
    "train/loss_mean",
]


RICHNESS = [f"monitor/richness/{arm}" for arm in ("t", "threshold", "slow", "slow_threshold")]


def test_drift_panels_put_each_monitor_beside_its_limit() -> None:
    found = sections(METRICS)
    assert found["Monitors and their limits"] == {"richness": RICHNESS}
    assert found["What the model can do"] == {
        "heldout pass@k": ["evaluate/heldout_pass_at_1", "evaluate/heldout_pass_at_4"]
    }
    assert list(found["Levels of the monitors"]) == ["compression_ratio", "richness"]
    assert "Samples" not in found  # nothing of it was measured


def test_a_workspace_draws_its_run_against_the_round() -> None:
    made = workspace("team", "ssd_loop", "mine", "abcdef123456", METRICS)
    panels = [panel for section in made.sections for panel in section.panels]
    assert {str(panel.x) for panel in panels} == {"round"}
    assert [panel.y for panel in panels[:1]] == [RICHNESS]
    assert made.name == "mine: drift by round"
    stored = json.dumps(made._to_model().spec.model_dump(mode="json"))  # what its save() sends
    assert "abcdef123456" in stored
    assert "monitor/richness/threshold" in stored


def log_records(folder: Path) -> list[dict[str, Any]]:
    """Everything that W&B would upload, file by file, in the words of its own reader."""
    found = []
    for run in sorted((folder / "wandb").glob("offline-run-*")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        found += [json.loads(line) for line in shown.splitlines()]
    return found


def history(folder: Path, *, only: str = "") -> list[dict[str, Any]]:
    """Every row of metrics without W&B's own columns, but for its step."""
    rows = [record["history"]["item"] for record in log_records(folder) if record["type"] == "history"]
    return [
        {key: value for key, value in row.items() if key == "_step" or (key[0] != "_" and only in key)}
        for row in rows
    ]


@pytest.mark.slow
def test_every_round_is_logged_once_over_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = tracker(folder)
    log_rounds(first, range(2))
    first.log(2, "sample", {"tokens": 102})
    first.close(1)  # killed in round 2: the loop goes through the finished stages again
    time.sleep(1.1)  # W&B names folders by the second, and a restart takes longer than that
    second = tracker(folder)
    log_rounds(second, range(3))
    second.close(0)
    rows = history(folder)
    assert [(row["round"], row["_step"]) for row in rows] == [(0, 0), (1, 1), (2, 2)]
    assert [row["evaluate/heldout_pass_at_1"] for row in rows] == [0.0, 0.1, 0.2]
    assert [row.get("sample/tokens") for row in rows] == [None, 101, 102]
    assert [row.get("monitor/richness/value") for row in rows] == [None, 1.9, 1.8]
    assert "sample/note" not in rows[2]
    runs = list((folder / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    assert all("-abcdef123456" in run.name for run in runs)  # a suffix where two began in one second


@pytest.mark.slow
def test_metrics_are_drawn_against_the_round_and_a_sync_appends(tmp_path: Path) -> None:
    one = tracker(tmp_path / "run")
    log_rounds(one, range(2))
    one.close(0)
    found = log_records(tmp_path / "run")
    axes = {r["metric"]["name"]: r["metric"].get("step_metric") for r in found if r["type"] == "metric"}
    assert axes["monitor/richness/threshold"] == axes["evaluate/heldout_pass_at_1"] == "round"
    assert next(r["run"]["resume"] for r in found if r["type"] == "run") is True


@pytest.mark.slow
def test_tables_report_and_alert_are_in_an_offline_run_once(tmp_path: Path, no_key: Path) -> None:
    folder = tmp_path / "run"
    page = folder / "report.html"
    for _ in range(2):  # the second time all of it was sent
        one = tracker(folder)
        log_rounds(one, range(3))
        page.write_text("<p>the report</p>")
        one.stopped(decision(2, "stop"))
        one.report(page)
        one.close(0)
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    found = log_records(folder)
    (alert,) = [record["alert"] for record in found if record["type"] == "alert"]
    assert (alert["title"], alert["level"]) == ("none: stopped after round 2", "WARN")
    assert "the reason" in alert["text"]
    artifacts = [record["artifact"] for record in found if record["type"] == "artifact"]
    (report,) = [artifact for artifact in artifacts if artifact["type"] == "report"]
    (kept,) = report["manifest"]["contents"]
    assert kept["path"] == "report.html"
    assert Path(kept["local_path"]).is_relative_to(folder / "wandb")  # a sync finds it without the home
    assert Path(kept["local_path"]).read_text() == "<p>the report</p>"
    rows = history(folder, only=TABLE)
    assert [f"{TABLE}.path" in row for row in rows] == [False, True, True]
    files = next((folder / "wandb").glob("offline-run-*")) / "files"
    table = json.loads((files / rows[2][f"{TABLE}.path"]).read_text())
    assert table["columns"] == COLUMNS
    assert sorted(row[1] for row in table["data"]) == ["prompt0", "prompt1", "prompt2"]


@pytest.mark.slow
def test_what_comes_after_a_round_was_sent_is_not_lost(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    one = tracker(folder)
    log_rounds(one, range(2))
    one.log(1, "interpolate", {"gate_slope": 1.0})  # a remedy's weights, made after the decision
    log_rounds(one, range(2, 3))
    for n, value in ((0, 0.25), (2, 0.5)):
        one.log(n, "sweep", {"best_pass_at_1": value})
        one.log(n, "final", {"as_measured_pass_at_1": value})
    one.close(0)
    assert [row.get("interpolate/gate_slope") for row in history(folder)] == [None, None, 1.0]
    ends = [r["summary"]["update"] for r in log_records(folder) if r["type"] == "summary"]
    summary = {name: value for update in ends for name, value in update.items()}
    assert summary["final/base/as_measured_pass_at_1"] == 0.25
    assert summary["final/best/as_measured_pass_at_1"] == 0.5
    assert summary["sweep/best/best_pass_at_1"] == 0.5


def python(code: str, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run some code in a process that starts a W&B service of its own."""
    env = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, **options)


KILLED = """
import os, signal, sys, time
from pathlib import Path
from tests.test_tracking import log_rounds, tracker
one = tracker(Path(sys.argv[1]))
log_rounds(one, range(2))
while '{"round": 1}' not in (one.folder / "wandb/logged.jsonl").read_text():
    time.sleep(0.05)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_kill_loses_no_round_that_counts_as_sent(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "wandb").mkdir(parents=True)
    (folder / "wandb" / "logged.jsonl").touch()
    assert python(KILLED, folder).returncode == -signal.SIGKILL
    time.sleep(1.1)
    second = tracker(folder)
    log_rounds(second, range(3))
    second.close(0)
    assert [row["round"] for row in history(folder)] == [0, 1, 2]


@pytest.mark.slow
def test_a_server_that_does_not_answer_means_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("ssd_loop.tracking.INIT_TIMEOUT_S", 5)
    one = tracker(tmp_path / "run", "online")
    log_rounds(one, range(2))
    one.close(0)
    assert one.mode == "offline"
    assert "cannot be reached" in caplog.text
    assert [row["round"] for row in history(tmp_path / "run")] == [0, 1]


@pytest.mark.slow
def test_a_run_that_finished_offline_waits_until_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssd_loop.tracking.CLOSE_TIMEOUT_S", 0.01)
    one = tracker(tmp_path / "run", "offline")
    log_rounds(one, range(2))
    one.close(0)
    assert [row["round"] for row in history(tmp_path / "run")] == [0, 1]


SILENT = """
import logging, socket, sys, time
from pathlib import Path
from ssd_loop import tracking
from tests.test_tracking import log_rounds, tracker
tracking.CLOSE_TIMEOUT_S = 3
one = tracker(Path(sys.argv[1]), "online")
began = time.monotonic()
log_rounds(one, range(4))
print(round(time.monotonic() - began, 1))
time.sleep(2)  # W&B's own process has started and waits
one.close(1)
print(round(time.monotonic() - began, 1))
"""


@pytest.mark.slow
def test_a_server_that_hangs_holds_up_neither_training_nor_exit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections and says nothing
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        began = time.monotonic()
        done = python(SILENT, tmp_path / "run", check=True)
        assert time.monotonic() - began < 25
    logged, closed = map(float, done.stdout.split())
    assert logged < 5  # W&B itself would wait for 30 s
    assert closed < 12
    assert done.stderr.count("\n") == 1, done.stderr
    assert "does not answer" in done.stderr
