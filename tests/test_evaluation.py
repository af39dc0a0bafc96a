"""The numbers of a report, against counting by hand."""

from __future__ import annotations

import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssd_loop import evaluation
from ssd_loop.config import EvaluateConfig, SandboxConfig
from ssd_loop.errors import BadArtifactError, ConfigError
from ssd_loop.evaluation import (
    estimate,
    panel_problems,
    panel_report,
    plan_panels,
    problem_inputs,
    reference_report,
    reference_texts,
    sample_counts,
    score_texts,
    trait,
)
from ssd_loop.figures import headline, read_report
from ssd_loop.judging import judge_all
from ssd_loop.monitors.passes import pass_at_k
from ssd_loop.monitors.richness import distinct_at_m
from ssd_loop.problems import load_panel
from ssd_loop.prompts import Renderer
from ssd_loop.records import Result, Sample, TextScore, Trait, read_rows
from ssd_loop.sampling import Drawing
from ssd_loop.sandbox import Limits
from tests import tiny
from tests.rows import ScriptedEngine, fenced, function, result, sample

SMALL = EvaluateConfig.model_validate({"samples_per_problem": 2, "pass_at": [1, 2]})


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(tiny.build_tokenizer())


@pytest.mark.parametrize(("n", "k"), [(n, k) for n in range(1, 7) for k in range(1, n + 1)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n: int, k: int) -> None:
    for right in range(n + 1):
        draws = list(itertools.combinations([1] * right + [0] * (n - right), k))
        assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize("counts", [[1], [3], [1, 1], [2, 1], [4, 2, 1], [3, 3], [1, 1, 1, 1, 1], [5, 1, 1]])
def test_distinct_at_m_is_the_mean_number_of_kinds_in_a_draw(counts: list[int]) -> None:
    programs = [kind for kind, count in enumerate(counts) for _ in range(count)]
    for m in range(1, len(programs) + 1):
        draws = [len(set(draw)) for draw in itertools.combinations(programs, m)]
        assert distinct_at_m(counts, m) == pytest.approx(sum(draws) / len(draws))


def test_distinct_at_m_does_not_move_with_the_number_of_samples() -> None:
    """The same law measured with 4 and with 16 samples gives the same mean; plain counting does not."""
    rng = np.random.default_rng(0)
    law = [0.5, 0.2, 0.1, 0.1, 0.05, 0.05]
    means = {
        n: np.mean(
            [distinct_at_m([c for c in row if c], 2) for row in rng.multinomial(n, law, 20_000).tolist()]
        )
        for n in (4, 16)
    }
    exact = 2.0 - sum(p * p for p in law)
    assert means[4] == pytest.approx(exact, abs=0.01)
    assert means[16] == pytest.approx(exact, abs=0.01)


def test_distinct_at_m_ignores_order_and_kinds_never_drawn() -> None:
    assert distinct_at_m([1, 2, 3], 2) == distinct_at_m([3, 0, 1, 2], 2)


def test_an_estimate_by_hand() -> None:
    found = estimate([0.0, 1.0, 1.0])
    assert found.mean == pytest.approx(2 / 3)
    assert found.se == pytest.approx(math.sqrt(1 / 3) / math.sqrt(3))
    assert estimate([0.4]).se == 0.0


def test_round_0_draws_more() -> None:
    config = EvaluateConfig.model_validate({"samples_per_problem": {"probe": 3}, "baseline_multiplier": 5})
    later, first = sample_counts(config, baseline=False), sample_counts(config, baseline=True)
    assert set(later) == {"probe", "heldout", "ood"}
    assert later["probe"] == 3
    assert first == {panel: 5 * count for panel, count in later.items()}


@pytest.mark.parametrize("panel", ["probe", "heldout", "ood"])
@pytest.mark.parametrize("limit", [1, 5, 17])
def test_a_thinned_panel_keeps_ids_and_order(panel: str, limit: int) -> None:
    whole = load_panel(panel)
    kept = panel_problems(EvaluateConfig(limit=limit), panel)
    assert len(kept) == limit
    places = [whole.index(problem) for problem in kept]
    assert places == sorted(set(places))


def test_a_thinned_panel_keeps_every_tier_and_kind() -> None:
    for panel in ("heldout", "ood"):
        whole, kept = load_panel(panel), panel_problems(EvaluateConfig(limit=12), panel)
        assert {p.tier for p in kept} == {p.tier for p in whole}
        assert {p.kind for p in kept} == {p.kind for p in whole}


def test_a_limit_above_the_size_keeps_the_panel() -> None:
    assert panel_problems(EvaluateConfig(limit=10_000), "probe") == load_panel("probe")


def test_the_problems_are_an_input_by_content() -> None:
    whole, thin = problem_inputs(EvaluateConfig()), problem_inputs(EvaluateConfig(limit=3))
    assert set(whole) == set(thin) == {"probe", "heldout", "ood"}
    assert all(whole[panel] != thin[panel] for panel in whole)


def test_a_panel_report_by_hand() -> None:
    problems = [function("f", tier="easy"), function("g", tier="hard"), function("h", tier="hard")]
    plus, times = fenced("def f(x):\n    return x + 1"), fenced("def f(x):\n    return x * 2")
    rows = [
        ("f", 0, plus, "passed"),
        ("f", 1, plus.replace("x", "y"), "passed"),
        ("g", 0, plus, "passed"),
        ("g", 1, times, "failed"),
        ("h", 0, fenced("def h(:"), "crashed"),
        ("h", 1, "no code", "no_code"),
    ]
    samples = [
        sample(text, panel="heldout", prompt_id=name, sample_index=i, finish_reason="length" if i else "stop")
        for name, i, text, _ in rows
    ]
    report = panel_report(
        problems, samples, [result(name, o, i) for name, i, _, o in rows], traits(samples), SMALL
    )
    assert report["problems"] == 3
    assert report["samples"] == 6
    assert report["outcomes"] == {"crashed": 1, "failed": 1, "no_code": 1, "passed": 3}
    assert report["pass_at"]["1"]["mean"] == pytest.approx(0.5)
    assert report["pass_at"]["1"]["se"] == pytest.approx(0.5 / math.sqrt(3))
    assert report["pass_at"]["2"]["mean"] == pytest.approx(2 / 3)
    assert report["tiers"]["easy"]["1"]["mean"] == 1.0
    assert report["tiers"]["hard"]["1"]["mean"] == 0.25
    assert report["passed"] == {"f": [2, 2], "g": [1, 2], "h": [0, 2]}
    assert report["truncated_share"] == 0.5
    assert report["unparsable_share"] == pytest.approx(2 / 6)
    assert report["diversity"]["m"] == 2
    assert report["diversity"]["per_problem"] == {"f": pytest.approx(1.0), "g": pytest.approx(2.0)}
    assert report["diversity"]["distinct"]["mean"] == pytest.approx(1.5)
    json.dumps(report, allow_nan=False)


def test_a_k_beyond_the_samples_is_left_out() -> None:
    rows = [sample(fenced("x"), panel="heldout", prompt_id="f")]
    config = EvaluateConfig.model_validate({"pass_at": [1, 2]})
    report = panel_report([function("f")], rows, [result("f", "passed")], traits(rows), config)
    assert set(report["pass_at"]) == {"1"}


def test_without_execution_there_is_no_pass_rate_but_diversity() -> None:
    rows = [sample(fenced("x = 1"), panel="heldout", prompt_id="f", sample_index=i) for i in range(2)]
    report = panel_report(
        [function("f")], rows, [result("f", "not_run", i) for i in range(2)], traits(rows), SMALL
    )
    assert report["pass_at"] == {}
    assert report["passed"] == {}
    assert report["diversity"]["distinct"]["mean"] == pytest.approx(1.0)


def test_a_model_that_writes_no_code_at_all_passes_nothing() -> None:
    """no_code is a measured failure wherever code would have been run."""
    rows = [sample("words", panel="heldout", prompt_id="f", sample_index=i) for i in range(2)]
    report = panel_report(
        [function("f")], rows, [result("f", "no_code", i) for i in range(2)], traits(rows), SMALL
    )
    assert report["pass_at"]["1"]["mean"] == 0.0
    assert report["passed"] == {"f": [0, 2]}
    assert report["unparsable_share"] == 1.0


def test_a_panel_that_was_only_partly_judged_has_no_pass_rate() -> None:
    """Counting what was not run as wrong would look like harm."""
    rows = [sample("7", panel="ood", prompt_id=name) for name in ("f", "sum")]
    found = [result("f", "not_run"), result("sum", "passed")]
    report = panel_report([function("f"), function("sum")], rows, found, traits(rows), SMALL)
    assert report["pass_at"] == {}
    assert report["passed"] == {}


def test_reference_texts_are_cut_to_one_length_and_scored_per_token(renderer: Renderer) -> None:
    texts = reference_texts(EvaluateConfig(reference_tokens=32), renderer)
    assert len({text["id"] for text in texts}) == len(texts) >= 4
    assert {len(text["token_ids"]) for text in texts} == {32}
    report = reference_report(score_texts(ScriptedEngine(), texts))
    assert list(report["per_text"].values()) == [pytest.approx(i + 1) for i in range(len(texts))]
    assert report["nll"]["mean"] == pytest.approx((len(texts) + 1) / 2)
    assert report["perplexity"] == pytest.approx(math.exp(report["nll"]["mean"]))


def test_a_whole_evaluation_writes_its_files_and_later_rounds_share_the_reference(
    renderer: Renderer, tmp_path: Path
) -> None:
    config = EvaluateConfig.model_validate({"limit": 4, "samples_per_problem": 2, "reference_tokens": 16})

    def measured(n: int, out: Path, reference: Path | None) -> dict[str, object]:
        out.mkdir()
        drawing = Drawing(renderer, stop_token_ids=(2,), run_seed=0, shard_size=8)
        counts = sample_counts(config, baseline=reference is None)
        draws = plan_panels(config, drawing, counts=counts, round_index=n)
        return evaluation.run(
            config,
            SandboxConfig(execute=False),
            draws,
            drawing,
            engine=ScriptedEngine(),
            round_index=n,
            reference=reference,
            out=out,
        )

    first = measured(0, tmp_path / "zero", None)
    measured(1, tmp_path / "one", tmp_path / "zero")
    written = {
        "report.json",
        "samples.parquet",
        "results.parquet",
        "traits.parquet",
        "scores.parquet",
        "shards",
    }
    assert set(os.listdir(tmp_path / "zero")) == {*written, "reference.json"}
    assert set(os.listdir(tmp_path / "one")) == written
    rows = read_rows(tmp_path / "zero" / "samples.parquet", Sample)
    assert len(rows) == 3 * 4 * 2 * config.baseline_multiplier
    outcomes = read_rows(tmp_path / "zero" / "results.parquet", Result)
    assert [(r.panel, r.prompt_id, r.sample_index) for r in rows] == [
        (r.panel, r.problem_id, r.sample_index) for r in outcomes
    ]
    seen = read_rows(tmp_path / "zero" / "traits.parquet", Trait)
    assert seen == [trait(row) for row in rows]
    scores = read_rows(tmp_path / "one" / "scores.parquet", TextScore)
    assert {len(score.top_ids) for score in scores} == {20 * len(scores[0].logprobs)}
    report = read_report(tmp_path / "zero")
    assert report["signal"]["label"] == "weak"  # of four problems nothing can be told
    assert "signal" not in read_report(tmp_path / "one")
    assert list(report["panels"]) == ["heldout", "ood", "probe"]
    assert len(first.pop("template_sha256")) == 64
    assert headline(report) == first


def test_the_headline_names_are_stable() -> None:
    value = {"mean": 0.5, "se": 0.1}
    report = {
        "panels": {
            "probe": {
                "tokens": 3,
                "pass_at": {"1": value},
                "truncated_share": 0.2,
                "diversity": {"m": 2, "distinct": {"mean": 1.5, "se": 0.1}},
            },
            "ood": {"tokens": 4, "pass_at": {}, "truncated_share": 0.0},
        },
        "reference": {"nll": {"mean": 2.0, "se": 0.1}, "perplexity": math.exp(2.0)},
    }
    assert headline(report) == {
        "tokens": 7,
        "probe_pass_at_1": 0.5,
        "probe_pass_at_1_se": 0.1,
        "probe_truncated_share": 0.2,
        "probe_distinct_at_2": 1.5,
        "ood_truncated_share": 0.0,
        "reference_nll": 2.0,
        "reference_perplexity": math.exp(2.0),
    }


@pytest.mark.parametrize("text", [None, "", "{", "\xff"])
def test_a_torn_report_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "report.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadArtifactError, match=r"report\.json"):
        read_report(tmp_path)


ECHO = {"prompt": "Echo the input.", "tests": [{"input": "1", "output": "1"}, {"input": "2", "output": "2"}]}


def sourced(folder: Path, rows: list[dict[str, Any]], checker: str, **settings: Any) -> EvaluateConfig:
    path = folder / f"{checker}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": str(path), "columns": {"tests": "tests"}, "checker": checker}
    return EvaluateConfig.model_validate({"panels": ["heldout"], "sources": {"heldout": source}, **settings})


def test_a_panel_can_come_from_anywhere_and_is_thinned_too(tmp_path: Path) -> None:
    rows = [{**ECHO, "prompt": f"Echo {number}."} for number in range(20)]
    config = sourced(tmp_path, rows, "stdin", limit=5)
    problems = panel_problems(config, "heldout")
    assert [(p.panel, p.kind) for p in problems] == [("heldout", "stdin")] * 5
    assert panel_problems(EvaluateConfig(), "heldout") == panel_problems(EvaluateConfig(limit=60), "heldout")
    assert problem_inputs(config)["heldout"] != problem_inputs(EvaluateConfig())["heldout"]


def test_a_broken_panel_is_named_by_its_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"check evaluate\.sources\.heldout or mend"):
        panel_problems(sourced(tmp_path, [{"prompt": "Echo.", "tests": 5}], "stdin"), "heldout")


def traits(rows: list[Sample]) -> list[Trait]:
    return [trait(row) for row in rows]


def report_of(config: EvaluateConfig, answers: list[str]) -> dict[str, Any]:
    """A report as a round writes it, of a panel with one problem."""
    (problem,) = panel_problems(config, "heldout")
    rows = [
        sample(text, panel="heldout", prompt_id=problem.id, sample_index=i) for i, text in enumerate(answers)
    ]
    results = judge_all([(problem, row) for row in rows], limits=Limits(), workers=2, execute=True)
    panel = panel_report([problem], rows, results, traits(rows), config)
    return {
        "panels": {"heldout": panel},
        "reference": {"nll": {"mean": 1.0}, "perplexity": 2.7, "per_text": {}},
    }


def test_programs_are_code_and_have_diversity(tmp_path: Path) -> None:
    config = sourced(tmp_path, [ECHO], "stdin", samples_per_problem=3)
    answers = [fenced("print(input())"), fenced("x = input()\nprint(x)"), fenced("print(")]
    report = report_of(config, answers)
    panel = report["panels"]["heldout"]
    assert panel["pass_at"]["1"]["mean"] == pytest.approx(2 / 3)
    assert panel["unparsable_share"] == pytest.approx(1 / 3)
    assert panel["diversity"]["distinct"]["mean"] == pytest.approx(2.0)
