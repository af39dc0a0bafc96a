"""Leaks before and inside a run, and the twin panel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssd_loop import filtering, monitoring
from ssd_loop.cli import main
from ssd_loop.config import EvaluateConfig, FilterConfig, RunConfig
from ssd_loop.config_file import load
from ssd_loop.errors import ConfigError
from ssd_loop.evaluation import panel_problems, trait
from ssd_loop.monitors.evidence import read_look
from ssd_loop.monitors.leaks import canaries
from ssd_loop.problems import load_panel
from ssd_loop.prompts import load_prompts
from ssd_loop.records import Result, Sample, Trait, write_rows
from tests.rows import fenced, sample


def test_the_built_in_prompts_share_nothing_with_the_panels() -> None:
    config = RunConfig()
    assert monitoring.prompt_leaks(config, load_prompts(config.prompts)) == []


def test_prompts_that_quote_a_panel_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    quoted = load_panel("heldout")[0]
    rows = [{"prompt": "Count the vowels of a word."}, {"prompt": quoted.prompt}]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["--prompts.source", "prompts.jsonl", "--track.mode", "disabled"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"heldout/{quoted.id}" in said
    assert "monitor.action to warn" in said
    assert not Path("rounds").exists()


def test_panel_texts_and_canaries_in_training_rows_are_named(tmp_path: Path) -> None:
    config = RunConfig()
    quoted = panel_problems(config.evaluate, "heldout")[3]
    prompts = load_prompts(config.prompts)
    texts = [fenced("def f(x):\n    return x"), quoted.prompt, f"The constant is {canaries()[0]}."]
    rows = [sample(text, prompt_id=prompts[i].id) for i, text in enumerate(texts)]
    write_rows(tmp_path / filtering.KEPT, Sample, rows)
    found = monitoring.leaked(tmp_path, config, prompts)
    assert [f"heldout/{quoted.id}" in hit for hit in found["panel_overlap"]] == [True]
    assert found["canaries"] == [f"sample 0 of {prompts[2].id}"]


def test_twins_pair_with_the_heldout_problems_and_say_none_of_their_names() -> None:
    config = EvaluateConfig(limit=20)
    originals = {problem.id: problem for problem in panel_problems(config, "heldout")}
    twins = panel_problems(config, "twin")
    assert {problem.id for problem in twins} <= set(originals)
    assert len(twins) >= 18
    assert all(twin.entry_point != originals[twin.id].entry_point for twin in twins)
    with pytest.raises(ValueError, match="twins are made of"):
        EvaluateConfig.model_validate(
            {"sources": {"twin": {"source": "x.jsonl", "columns": {"tests": "t"}, "checker": "exact"}}}
        )


def test_the_filter_is_audited_in_sets_of_one_size(tmp_path: Path) -> None:
    """Among four answers one behaviour has a majority; in sets of two none has, as in a later round."""
    rows = [sample(fenced(f"x = {i}"), panel="heldout", prompt_id="p", sample_index=i) for i in range(4)]
    found = [Result("heldout", "p", i, "failed", behaviour) for i, behaviour in enumerate("abcc")]
    write_rows(tmp_path / "samples.parquet", Sample, rows)
    write_rows(tmp_path / "results.parquet", Result, found)
    write_rows(tmp_path / "traits.parquet", Trait, [trait(row) for row in rows])
    config = FilterConfig(filters=("minority",))
    accepted = [
        list(read_look(tmp_path, config, {"heldout": size}).accepted["heldout"].values()) for size in (4, 2)
    ]
    assert accepted == [[False, False, True, True], [True, True, True, True]]


def test_a_twin_panel_without_a_twin_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_text(json.dumps({"prompt": "2 + 5?", "answer": 7}))
    source = {"source": str(path), "columns": {"tests": "answer"}, "checker": "exact"}
    config = EvaluateConfig.model_validate({"panels": ["heldout", "twin"], "sources": {"heldout": source}})
    with pytest.raises(ConfigError, match="leave twin out"):
        panel_problems(config, "twin")


def test_settings_of_earlier_versions_are_dropped_where_they_are_inherited() -> None:
    old = RunConfig().model_dump(mode="json")
    old["monitor"] |= {"pass_margin": 0.02, "truncated_limit": 0.9}
    assert load(None, {}, old) == RunConfig()
