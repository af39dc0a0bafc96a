"""The untouched panel: arms, second answers and what they cost; and the sweep before it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ssd_loop import finals, sweeping
from ssd_loop.config import BaselinesConfig, EvaluateConfig, RunConfig, SandboxConfig
from ssd_loop.engines import Completion, Request
from ssd_loop.errors import BadArtifactError
from ssd_loop.evaluation import panel_problems
from ssd_loop.finals import Plan, compared, parses
from ssd_loop.prompts import Renderer
from ssd_loop.records import Result, Sample, read_rows
from ssd_loop.sampling import SAMPLES, Decoding, Drawing
from tests import tiny
from tests.rows import ScriptedEngine, fenced, function

COOL, WARM = Decoding(0.2, 0, 1.0, 16), Decoding(1.0, 20, 0.8, 16)
EXACT = replace(function("sum", panel="report"), kind="exact", answer="7")


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(tiny.build_tokenizer())


@dataclass
class Numbers(ScriptedEngine):
    """Says 7 at low temperature, nothing to judge at a high one, and 7 whenever it is asked to check."""

    renderer: Renderer | None = None

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        assert self.renderer is not None
        self.asked.append(list(requests))
        for request in requests:
            prompt = self.renderer.tokenizer.decode(list(request.prompt_token_ids))
            said = "7" if request.temperature < 0.5 or "Check your answer" in prompt else "none"
            ids = tuple(self.renderer.tokenizer(said, add_special_tokens=False)["input_ids"])
            yield Completion((*ids, request.stop_token_ids[0]), "stop", -1.0)


@pytest.fixture
def config(tmp_path: Path) -> EvaluateConfig:
    """Eight problems whose answer is 7, held out and to report on."""
    rows = [{"prompt": f"Three and four, time {n}.", "answer": "7"} for n in range(8)]
    file = tmp_path / "sevens.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": str(file), "columns": {"tests": "answer"}, "checker": "exact"}
    given = {"panels": ["heldout"], "sources": {"heldout": source, "report": source}, "max_new_tokens": 16}
    return EvaluateConfig.model_validate(given)


def final(config: EvaluateConfig, renderer: Renderer, out: Path, wanted: Plan) -> dict[str, Any]:
    out.mkdir()
    engine = Numbers(renderer=renderer)
    metrics = finals.run(
        wanted,
        config,
        SandboxConfig(),
        Drawing(renderer, stop_token_ids=(2,), run_seed=0, shard_size=8),
        engine=engine,
        round_index=0,
        out=out,
    )
    return {"metrics": metrics, "asked": [r for batch in engine.asked for r in batch], **finals.read(out)}


def test_arms_share_answers_and_second_answers_replace_what_cannot_be_judged(
    config: EvaluateConfig, renderer: Renderer, tmp_path: Path
) -> None:
    arms = {"as measured": COOL, "as sampled": WARM, "best decoding": WARM}
    found = final(config, renderer, tmp_path / "out", Plan(arms, 2, True, 2048))  # type: ignore[arg-type]
    rate = {name: arm["pass_at_1"]["mean"] for name, arm in found["arms"].items()}
    assert rate == {
        "as measured": 1.0,
        "as sampled": 0.0,
        "best decoding": 0.0,
        "resampled": 0.0,  # drawn again at the same settings
        "revised": 1.0,
    }
    # 8 problems x 2 answers x 2 different settings, 16 drawn again, 16 revised.
    assert len(found["asked"]) == found["metrics"]["samples"] == 64
    assert len({request.seed for request in found["asked"]}) == 64
    arms_found = found["arms"]
    assert arms_found["best decoding"]["answers"] == 16
    assert arms_found["resampled"]["answers"] == arms_found["revised"]["answers"] == 32
    assert arms_found["resampled"]["tokens"] == 2 * arms_found["best decoding"]["tokens"]
    assert found["metrics"]["revised_pass_at_1"] == 1.0
    rows = read_rows(tmp_path / "out" / SAMPLES, Sample)
    results = read_rows(tmp_path / "out" / "results.parquet", Result)
    assert len({(row.prompt_id, row.sample_index) for row in rows}) == len(rows) == len(results)


def test_what_parses_is_not_drawn_again(config: EvaluateConfig, renderer: Renderer, tmp_path: Path) -> None:
    arms = dict.fromkeys(("as measured", "as sampled", "best decoding"), COOL)
    found = final(config, renderer, tmp_path / "out", Plan(arms, 1, True, 2048))  # type: ignore[arg-type]
    assert len(found["asked"]) == 16  # each once, and once revised
    assert found["arms"]["resampled"]["answers"] == 8


def test_a_revision_that_does_not_fit_keeps_the_first_answer(
    config: EvaluateConfig, renderer: Renderer, tmp_path: Path
) -> None:
    arms = dict.fromkeys(("as measured", "as sampled", "best decoding"), COOL)
    found = final(config, renderer, tmp_path / "out", Plan(arms, 1, True, 40))  # type: ignore[arg-type]
    assert len(found["asked"]) == 8
    assert found["arms"]["revised"]["pass_at_1"]["mean"] == 1.0
    assert found["arms"]["revised"]["answers"] == 8


def test_a_trained_model_has_no_second_answers(
    config: EvaluateConfig, renderer: Renderer, tmp_path: Path
) -> None:
    arms = {"as measured": COOL, "as sampled": WARM, "best decoding": COOL}
    found = final(config, renderer, tmp_path / "out", Plan(arms, 1, False, 2048))  # type: ignore[arg-type]
    assert set(found["arms"]) == set(arms)
    assert "_pass_at_1" not in " ".join(name for name in found["metrics"] if name.startswith("revised"))


def test_the_same_settings_give_the_same_bytes(
    config: EvaluateConfig, renderer: Renderer, tmp_path: Path
) -> None:
    arms = {"as measured": COOL, "as sampled": WARM, "best decoding": WARM}
    for name in ("one", "two"):
        final(config, renderer, tmp_path / name, Plan(arms, 2, True, 2048))  # type: ignore[arg-type]
    for file in (SAMPLES, "results.parquet", finals.FINAL):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def arms_of(**rates: str) -> dict[str, Any]:
    """A final.json: for each arm the answers to problems a, b, c: p passed, f failed."""
    passed = {
        arm.replace("_", " "): {name: [int(x == "p"), 1] for name, x in zip("abc", letters, strict=True)}
        for arm, letters in rates.items()
    }
    return {"arms": {arm: {"passed": by} for arm, by in passed.items()}}


def test_the_trained_model_at_its_best_is_held_against_every_arm_of_the_base() -> None:
    base = arms_of(as_measured="fff", as_sampled="ffp", best_decoding="fpp", resampled="fpp", revised="ppp")
    found = compared(base, arms_of(as_measured="ffp", as_sampled="fff", best_decoding="ppp"))
    gains = {name: round(difference["mean"], 3) for name, difference in found.items()}
    assert gains == {
        "best decoding": 0.333,
        "as sampled": 0.667,
        "as measured": 1.0,
        "resampled": 0.333,
        "revised": 0.0,
        "as measured, both": 0.333,
    }
    assert next(iter(found)) == "best decoding"  # the bar comes first


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("function", fenced("def f(x):\n    return x"), True),
        ("function", fenced("def f(x:\n    return"), False),
        ("function", "no code at all", False),
        ("exact", "so it is 7", True),
        ("exact", "I do not know", False),
        ("shell", "```sh\nls (\n```", True),  # only the shell could tell
    ],
)
def test_what_can_be_judged(kind: Any, text: str, said: bool) -> None:
    assert parses(replace(EXACT, kind=kind), text) is said


# The sweep.


def test_the_grid_begins_with_the_settings_in_use_and_names_none_twice() -> None:
    config = RunConfig()
    points = sweeping.grid(BaselinesConfig(), config.sample, config.evaluate)
    assert points[0] == Decoding(0.8, 0, 1.0, 128)  # as measured
    assert points[1] == Decoding(1.0, 20, 0.8, 128)  # as sampled, which is in the grid too
    assert len(points) == len(set(points)) == 13


def test_a_sweep_tells_its_points_apart(config: EvaluateConfig, renderer: Renderer, tmp_path: Path) -> None:
    metrics = sweeping.run(
        [WARM, COOL, replace(COOL, top_k=5)],
        2,
        config,
        SandboxConfig(),
        Drawing(renderer, stop_token_ids=(2,), run_seed=0, shard_size=8),
        engine=Numbers(renderer=renderer),
        round_index=0,
        out=tmp_path,
    )
    found = sweeping.read(tmp_path)
    assert [row["pass_at_1"]["mean"] for row in found["points"]] == [0.0, 1.0, 1.0]
    top = sweeping.best(found["points"])
    assert top is not None
    assert sweeping.point_decoding(top) == COOL  # the first of equal ones
    assert (metrics["best_temperature"], metrics["best_pass_at_1"]) == (0.2, 1.0)
    assert len(read_rows(tmp_path / SAMPLES, Sample)) == 3 * 2 * len(panel_problems(config, "heldout"))


def test_where_nothing_was_run_there_is_no_best_point() -> None:
    assert sweeping.best([{"pass_at_1": None}]) is None


@pytest.mark.parametrize("reader", [sweeping.read, finals.read])
def test_torn_files_are_named(reader: Any, tmp_path: Path) -> None:
    with pytest.raises(BadArtifactError, match="cannot be read"):
        reader(tmp_path)
