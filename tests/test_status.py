"""The state of a run, read from its files, and what its stages cost."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ssd_loop import costs, durable, store
from ssd_loop.cli import main
from ssd_loop.errors import BadArtifactError, ConfigError
from ssd_loop.monitors.decision import DECISION, summary
from ssd_loop.report import status
from ssd_loop.store import Metrics
from tests.rows import quiet_decision

VALUE = {"mean": 0.25, "se": 0.05}
REPORT: dict[str, Any] = {
    "panels": {
        "heldout": {
            "tokens": 10,
            "pass_at": {"1": VALUE},
            "truncated_share": 0.1,
            "unparsable_share": 0.1,
            "passed": {f"h{i}": [1, 4] for i in range(5)},
        },
        "probe": {
            "tokens": 20,
            "pass_at": {},
            "truncated_share": 0.1,
            "diversity": {"m": 2, "distinct": {"mean": 1.75, "se": 0.1}, "per_problem": {}},
        },
    },
    "reference": {"nll": {"mean": 1.0, "se": 0.1}, "perplexity": 2.718, "per_text": {}},
}


def measured(out: Path) -> Metrics:
    durable.write_json(out / "report.json", REPORT)
    return {"tokens": 30}


def decided(out: Path) -> Metrics:
    decision = quiet_decision(1)
    durable.write_json(out / DECISION, decision.to_json())
    return summary(decision)


def counted(out: Path) -> Metrics:
    (out / "rows").write_text("rows")
    return {"kept_tokens": 1234}


def stage(folder: Path, name: str, n: int, work: Callable[[Path], Metrics]) -> None:
    store.step(folder, stage=name, round_index=n, version=1, settings={}, inputs={}, work=work)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A run with round 0, a finished round 1 without weights, and a round 2 that was killed."""
    folder = tmp_path / "rounds" / "mine"
    about = {"base_model": {"title": "Tiny", "dtype": "bfloat16"}, "engine": "transformers", "config": {}}
    durable.write_sealed(folder / "run.json", about)
    with costs.timed(folder, 0, "evaluate"):
        stage(folder / "round_000" / "evaluate", "evaluate", 0, measured)
    stage(folder / "round_001" / "filter", "filter", 1, counted)
    stage(folder / "round_001" / "evaluate", "evaluate", 1, measured)
    stage(folder / "round_001" / "monitor", "monitor", 1, decided)
    (folder / "round_002" / "sample.partial").mkdir(parents=True)
    weights = tmp_path / "checkpoints" / "mine"
    stage(weights / "round_001" / "adapter", "train", 1, counted)
    durable.point_link(weights / "best", "round_000")
    return tmp_path


def test_the_state_of_every_stage(root: Path) -> None:
    state = status.read(root, "mine")
    assert (state["run"], state["model"], state["engine"]) == ("mine", "Tiny", "transformers")
    assert state["best"] == "round_000"
    assert [row["round"] for row in state["rounds"]] == [0, 1, 2]
    assert {
        row["round"]: {name: found["state"] for name, found in row["stages"].items()}
        for row in state["rounds"]
    } == {
        0: {"evaluate": "finished"},
        1: {
            "sample": "absent",
            "filter": "finished",
            "train": "finished",
            "merge": "absent",
            "evaluate": "finished",
            "monitor": "finished",
        },
        2: {
            "sample": "partial",
            "filter": "absent",
            "train": "absent",
            "merge": "absent",
            "evaluate": "absent",
            "monitor": "absent",
        },
    }
    assert state["rounds"][1]["report"]["heldout_pass_at_1"] == 0.25
    assert state["rounds"][1]["verdict"] == "continue"
    assert "verdict" not in state["rounds"][2]


def test_the_tables_show_the_numbers(root: Path) -> None:
    text = io.StringIO()
    status.show(status.read(root, "mine"), Console(file=text, width=200))
    shown = text.getvalue()
    for part in ("run mine: Tiny", "25.0 ± 5.0", "1.750", "2.718", "1,234 tok", "unfinished", "round_000"):
        assert part in shown
    assert "round 1: continue" in shown


def test_a_best_round_that_the_monitors_stop_at_is_called_so(root: Path) -> None:
    state = status.read(root, "mine")
    for best, verdict, is_said in (("round_001", "stop", True), ("round_001", "continue", False)):
        state["best"], state["rounds"][1]["verdict"] = best, verdict
        text = io.StringIO()
        status.show(state, Console(file=text, width=200))
        assert ("best: round_001, the very round that the monitors stop at" in text.getvalue()) is is_said


def test_a_run_that_has_only_begun_is_shown(tmp_path: Path) -> None:
    about = {"base_model": {"title": "Tiny", "dtype": "bfloat16"}, "engine": "vllm", "config": {}}
    durable.write_sealed(tmp_path / "rounds" / "new" / "run.json", about)
    text = io.StringIO()
    status.show(status.read(tmp_path, "new"), Console(file=text, width=200))
    assert "not decided yet" in text.getvalue()


def test_reading_changes_nothing(root: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    status.read(root, "mine")
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_the_command_prints_json_and_needs_no_name_for_the_only_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(status.read(Path(), "mine")))
    assert main(["status"]) == 0
    assert "run mine" in capsys.readouterr().out


@pytest.mark.parametrize(("argument", "shown"), [("status", "run mine"), ("--help", "positional arguments")])
def test_what_only_shows_waits_for_no_library_that_computes(root: Path, argument: str, shown: str) -> None:
    code = f"""
import sys
from ssd_loop.cli import main
try:
    main([{argument!r}])
except SystemExit:
    pass
print([m for m in ("numpy", "scipy", "pyarrow", "pydantic_settings") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert shown in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_several_runs_need_a_name(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    durable.write_sealed(root / "rounds" / "other" / "run.json", {})
    monkeypatch.chdir(root)
    assert main(["status"]) == 2
    assert capsys.readouterr().err.endswith("mine, other\n")


def test_an_unknown_run_is_refused_with_those_there(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"'yours'.*mine"):
        status.read(root, "yours")


def test_foreign_files_among_the_rounds_do_not_matter(root: Path) -> None:
    (root / "rounds" / "mine" / "round_001.bak").mkdir()
    (root / "rounds" / "mine" / "notes.txt").write_text("mine")
    assert [row["round"] for row in status.read(root, "mine")["rounds"]] == [0, 1, 2]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_torn_run_file_is_named(root: Path, text: str) -> None:
    (root / "rounds" / "mine" / "run.json").write_text(text)
    with pytest.raises(BadArtifactError, match=r"run\.json"):
        status.read(root, "mine")


def test_costs_add_up_over_attempts_and_a_torn_line_is_skipped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), costs.timed(tmp_path, 1, "train"):
        raise KeyboardInterrupt
    with costs.timed(tmp_path, 1, "train"):
        pass
    rows = [json.loads(line) for line in (tmp_path / costs.COSTS).read_text().splitlines()]
    assert [row["finished"] for row in rows if "finished" in row] == [False, True]
    with (tmp_path / costs.COSTS).open("a") as file:
        file.write('{"round": 1, "sta')
    found = costs.read(tmp_path)
    assert set(found) == {(1, "train")}
    assert found[1, "train"].attempts == 2
    assert found[1, "train"].seconds == pytest.approx(sum(row["seconds"] for row in rows))


def test_no_costs_yet(tmp_path: Path) -> None:
    assert costs.read(tmp_path) == {}
