"""Which completions are asked for, in which shards, and what a killed stage keeps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ssd_loop import sampling
from ssd_loop.config import SampleConfig
from ssd_loop.problems import Problem
from ssd_loop.prompts import Renderer
from ssd_loop.records import Sample, read_rows
from ssd_loop.sampling import Decoding, Drawing, Draws, draw_all, plan, split_shards, summary
from ssd_loop.store import SHARDS
from tests import tiny
from tests.rows import ScriptedEngine, sample

DECODING = Decoding(temperature=0.9, top_k=5, top_p=0.8, max_new_tokens=6)
STOPS = (2, 0)
SEEDS = [5804837559372623110, 3937375284784774461]


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(tiny.build_tokenizer())


def prompts(count: int, panel: str = "train") -> list[Problem]:
    return [Problem(panel=panel, id=f"p{i}", kind="text", prompt=f"Task {i}") for i in range(count)]


def drawing(renderer: Renderer, seed: int = 0) -> Drawing:
    return Drawing(renderer, STOPS, run_seed=seed, shard_size=8)


def draws(renderer: Renderer, count: int = 20, samples: int = 2, seed: int = 0, n: int = 1) -> Draws:
    return plan(drawing(renderer, seed), prompts(count), samples, decoding=DECODING, round_index=n)


def test_every_prompt_is_asked_as_often_as_wanted_and_as_rendered(renderer: Renderer) -> None:
    found = draws(renderer, 3, 2)
    assert [(d.panel, d.prompt_id, d.sample_index) for d in found] == [
        ("train", f"p{i}", index) for i in range(3) for index in range(2)
    ]
    request = found[2].request
    assert request.prompt_token_ids == renderer.prompt_ids(prompts(2)[1])
    assert (request.temperature, request.top_k, request.top_p) == (0.9, 5, 0.8)
    assert (request.max_new_tokens, request.stop_token_ids) == (6, STOPS)


def test_draws_are_a_sequence_wherever_it_is_cut(renderer: Renderer) -> None:
    found = draws(renderer, 5, 3)
    every = list(found)
    assert len(found) == len(every) == 15
    assert [found[at] for at in range(-15, 15)] == every + every
    for cut in (slice(2, 11), slice(None, -4), slice(13, None, -2), slice(40, 50)):
        assert found[cut] == every[cut]
    with pytest.raises(IndexError):
        found[15]


def test_every_completion_has_a_seed_of_its_own_in_every_round(renderer: Renderer) -> None:
    seeds = [d.request.seed for s in (0, 1) for n in (1, 2) for d in draws(renderer, 10, 3, s, n)]
    assert len(set(seeds)) == len(seeds)


def test_a_seed_does_not_depend_on_what_else_is_asked(renderer: Renderer) -> None:
    few = {(d.prompt_id, d.sample_index): d.request.seed for d in draws(renderer, 3, 2)}
    many = {(d.prompt_id, d.sample_index): d.request.seed for d in draws(renderer, 9, 5)}
    assert few == {key: many[key] for key in few}


def test_seeds_never_move(renderer: Renderer) -> None:
    """Old runs resume only while these values stay."""
    assert [d.request.seed for d in draws(renderer, 1, 2)] == SEEDS


@pytest.mark.parametrize("size", [8, 9, 64])
def test_shards_are_even_and_never_small(size: int) -> None:
    for count in range(1, 6 * size):
        items = list(range(count))
        shards = list(split_shards(items, size))
        assert [item for shard in shards for item in shard] == items
        sizes = {len(shard) for shard in shards}
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= min(size, count)
        assert max(sizes) < 2 * size


def test_completions_become_rows_in_order(renderer: Renderer, tmp_path: Path) -> None:
    asked = draws(renderer, 10, 2)
    rows = draw_all(drawing(renderer), asked, engine=ScriptedEngine(), policy_round=4, out=tmp_path)
    assert [(r.prompt_id, r.sample_index, r.seed) for r in rows] == [
        (d.prompt_id, d.sample_index, d.request.seed) for d in asked
    ]
    assert {r.policy_round for r in rows} == {4}
    for row in rows:
        assert (row.token_ids[-1] == 2) == (row.finish_reason == "stop")
        kept = row.token_ids[:-1] if row.finish_reason == "stop" else row.token_ids
        assert row.text == renderer.tokenizer.decode(list(kept))


def test_a_killed_stage_goes_on_after_its_last_whole_shard(renderer: Renderer, tmp_path: Path) -> None:
    asked = draws(renderer, 20, 2)

    def drawn(engine: ScriptedEngine, out: Path) -> list[Sample]:
        return draw_all(drawing(renderer), asked, engine=engine, policy_round=0, out=out)

    unbroken = drawn(ScriptedEngine(), tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        drawn(ScriptedEngine(dies_after=19), tmp_path / "killed")
    assert sorted(os.listdir(tmp_path / "killed" / SHARDS)) == ["00000.jsonl", "00001.jsonl"]
    second = ScriptedEngine()
    assert drawn(second, tmp_path / "killed") == unbroken
    assert second.asked == [[d.request for d in shard] for shard in [*split_shards(asked, 8)][2:]]


def test_the_stage_writes_its_samples_and_counts(renderer: Renderer, tmp_path: Path) -> None:
    config = SampleConfig(samples_per_prompt=3, shard_size=8, seed=5)
    metrics = sampling.run(
        config,
        prompts(4),
        drawing(renderer, 5),
        engine=ScriptedEngine(),
        policy_round=1,
        round_index=2,
        out=tmp_path,
    )
    rows = read_rows(tmp_path / sampling.SAMPLES, Sample)
    assert len(rows) == 12
    assert {row.policy_round for row in rows} == {1}
    assert len(metrics.pop("template_sha256")) == 64
    assert metrics == summary(rows)


def test_summary_counts_by_hand() -> None:
    rows = [
        sample(token_ids=(1, 2, 3), logprob=-3.0),
        sample(token_ids=(1,), logprob=-2.0, finish_reason="length"),
    ]
    assert summary(rows) == {"samples": 2, "tokens": 4, "truncated_share": 0.5, "mean_logprob": -1.25}


def test_summary_of_answers_without_tokens() -> None:
    assert summary([sample(token_ids=(), logprob=0.0)])["mean_logprob"] == 0.0
