"""Which rows are trained on: by policy, by seed, and with human-written ones among them."""

from __future__ import annotations

import pytest

from ssd_loop.mixing import Chosen, Mixture, answer, human_count, human_rows
from ssd_loop.problems import load_panel
from ssd_loop.prompts import Renderer
from ssd_loop.training_rows import TrainingRow
from tests import tiny
from tests.rows import function, sample

ROUNDS = [[sample(prompt_id=f"r{n}-{i}") for i in range(size)] for n, size in ((1, 5), (2, 3), (3, 4))]
FIRST, SECOND, THIRD = ROUNDS


def test_replace_takes_the_last_round_and_accumulate_all() -> None:
    assert list(Chosen("replace", ROUNDS, 1)) == THIRD
    assert list(Chosen("accumulate", ROUNDS, 1)) == FIRST + SECOND + THIRD
    assert len(Chosen("replace", ROUNDS, 1)) == 4
    assert len(Chosen("accumulate", ROUNDS, 1)) == 12


def test_a_subsample_has_the_size_of_the_last_round_and_comes_from_all() -> None:
    everything = FIRST + SECOND + THIRD
    seen = set()
    for seed in range(40):
        chosen = Chosen("accumulate-subsample", ROUNDS, seed)
        picked = list(chosen)
        assert len(picked) == len(chosen) == len(THIRD)
        assert picked == [row for row in everything if row in picked]  # in order, none twice
        seen |= {row.prompt_id for row in picked}
    assert seen == {row.prompt_id for row in everything}
    again = Chosen("accumulate-subsample", ROUNDS, 7)
    assert list(again) == list(again) == list(Chosen("accumulate-subsample", ROUNDS, 7))


@pytest.mark.parametrize("policy", ["replace", "accumulate", "accumulate-subsample"])
def test_in_the_first_round_every_policy_is_the_same(policy) -> None:
    assert list(Chosen(policy, [FIRST], 3)) == FIRST


def test_a_mixture_is_what_was_sampled_then_what_people_wrote() -> None:
    human = [TrainingRow((1, 2), (3,))]
    rows = Mixture(THIRD, human)
    sampled = [TrainingRow(row.prompt_token_ids, row.token_ids) for row in THIRD]
    assert list(rows) == list(rows) == sampled + human
    assert len(rows) == 5


@pytest.mark.parametrize(
    ("share", "sampled", "wanted"), [(0.0, 90, 0), (0.1, 90, 10), (0.5, 8, 8), (0.75, 8, 24)]
)
def test_the_share_is_of_the_whole_training(share: float, sampled: int, wanted: int) -> None:
    count = human_count(share, sampled)
    assert count == wanted
    assert count / (sampled + count) == pytest.approx(share)


def test_human_rows_are_prompts_with_their_solutions_and_a_stop_token() -> None:
    renderer = Renderer(tiny.build_tokenizer())
    stop = renderer.tokenizer.convert_tokens_to_ids("<|im_end|>")
    problems = load_panel("train")
    rows = human_rows(problems, 3, renderer=renderer, stop_token_ids=(stop,), seed=5)
    assert len(rows) == 3
    for row in rows:
        assert row.token_ids[-1] == stop
        text = renderer.text(row.token_ids, (stop,))
        problem = next(p for p in problems if p.solution.rstrip() in text)
        assert text == f"```python\n{problem.solution.rstrip()}\n```"
        assert tuple(row.prompt_token_ids) == renderer.prompt_ids(problem)
    again = human_rows(problems, 3, renderer=renderer, stop_token_ids=(stop,), seed=5)
    assert rows == again
    assert rows != human_rows(problems, 3, renderer=renderer, stop_token_ids=(stop,), seed=6)


def test_no_more_human_rows_than_there_are_solutions() -> None:
    renderer = Renderer(tiny.build_tokenizer())
    problems = [function("f", solution="def f(x):\n    return x\n"), function("g")]
    rows = human_rows(problems, 9, renderer=renderer, stop_token_ids=(1,), seed=0)
    assert len(rows) == 1


def test_a_solution_that_is_an_answer_already_stays_as_it_is() -> None:
    written = "Here:\n```python\nprint(1)\n```\n"
    assert answer(function("f", solution=written)) == written
