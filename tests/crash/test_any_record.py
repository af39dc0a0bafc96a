"""Whatever the records of a run hold, each command ends with a code of the contract and a sentence."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_loop.cli import main
from tests.crash.harness import Unbroken

pytestmark = pytest.mark.slow

RECORDS = (
    "rounds/tiny/run.json",
    "rounds/tiny/events.jsonl",
    "rounds/tiny/costs.jsonl",
    "rounds/tiny/round_000/evaluate/reference.json",
    "rounds/tiny/round_001/evaluate/report.json",
    "rounds/tiny/round_001/monitor/decision.json",
    "rounds/tiny/round_001/sample/manifest.json",
    "rounds/tiny/round_000/final/final.json",
    "checkpoints/tiny/round_001/composition.json",
    "checkpoints/tiny/round_001/adapter/probe.json",
    "checkpoints/tiny/round_002/merged/manifest.json",
)
COMMANDS = (
    ["status", "tiny"],
    ["status", "tiny", "--json"],
    ["verify", "tiny"],
    ["report", "tiny"],
    ["decide", "tiny"],
)
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 3.5, 1e308, float("nan"), 10**40),
    *("", "x" * 50, "../..", "\ud800", [], [[]], {}, {"a": None}),
)


@pytest.fixture(scope="module")
def folder(on_transformers: Unbroken, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("odd") / "run"
    shutil.copytree(on_transformers.folder, copy, symlinks=True)
    return copy


def odd(data: st.DataObject, record: Any) -> Any:
    """A copy of plain data with one place in it changed, removed or added."""
    path, at = [], record
    while isinstance(at, dict | list) and at and (not path or data.draw(st.booleans())):
        path.append(data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at)))))
        at = at[path[-1]]
    if not path:
        return data.draw(st.sampled_from(ODD))
    changed = json.loads(json.dumps(record))
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    how = data.draw(st.sampled_from(["other", "other", "other", "gone", "more"]))
    if how == "gone":
        del inner[path[-1]]
    elif how == "more" and isinstance(inner, dict):
        inner["strange"] = data.draw(st.sampled_from(ODD))
    else:
        inner[path[-1]] = data.draw(st.sampled_from(ODD))
    return changed


@pytest.mark.timeout(900)
@settings(derandomize=True, max_examples=50, deadline=None, database=None)
@given(st.data())
def test_any_value_in_any_record_is_met_in_one_sentence(folder: Path, data: st.DataObject) -> None:
    path = folder / data.draw(st.sampled_from(RECORDS))
    whole = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        lines = whole.splitlines()
        at = data.draw(st.integers(0, len(lines) - 1))
        lines[at] = json.dumps(odd(data, json.loads(lines[at])))
        text = "\n".join(lines) + "\n"
    else:
        text = json.dumps(odd(data, json.loads(whole)))
    path.write_text(text, encoding="utf-8")
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(data.draw(st.sampled_from(COMMANDS))))
    finally:
        path.write_text(whole, encoding="utf-8")
    told = err.getvalue()
    assert code in (0, 1, 2)
    assert "Traceback" not in told
    if code and not out.getvalue():
        assert 0 < len(told.strip().splitlines()[-1]) <= 400
