"""The signal of round 0, on samples whose right label is known."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ssd_loop.figures import signal_lines
from ssd_loop.monitors import signal
from ssd_loop.monitors.draws import Draws
from ssd_loop.monitors.passes import pass_at_k
from tests.evidence import Law, even

PROBLEMS, SAMPLES = 100, 12
HALF = Law(np.full(PROBLEMS, 0.5), mistakes=even(30))


def draws(law: Law, seed: int = 0, samples: int = SAMPLES) -> Draws:
    return law.draw(samples, np.random.default_rng(seed))


def measured(law: Law, seed: int = 0, tiers: list[str] | None = None) -> dict[str, Any]:
    return signal.measure(draws(law, seed), tiers or ["all"] * len(law.right))


STRONG = HALF  # right answers behave alike, wrong ones all differently; right ones score higher
# One shared mistake, of which the model is surer than of what is right.
AGAINST = replace(HALF, right=np.full(PROBLEMS, 0.3), mistakes=(0.95, 0.05), gap=-1.0)
CONSISTENT_NOISE = replace(HALF, mistakes=(1.0,), gap=0.0)  # two behaviours, as often right as wrong


def test_right_where_consistent_and_sure_is_a_strong_signal() -> None:
    for seed in range(10):
        found = measured(STRONG, seed)
        assert found["label"] == "strong"
        assert found["modal_gain"]["value"] > 0.3
        assert found["self_judgement"]["value"] > 0.7


def test_wrong_where_consistent_and_sure_is_a_signal_against() -> None:
    for seed in range(10):
        found = measured(AGAINST, seed)
        assert found["label"] == "against"
        assert found["modal_gain"]["value"] < -0.1
        assert found["self_judgement"]["value"] < 0.3


def test_neither_is_a_weak_signal() -> None:
    """Two signs at one-sided 5 %: of 100 such models about 80 have no sign at all."""
    labels = Counter(measured(CONSISTENT_NOISE, seed)["label"] for seed in range(100))
    assert labels["weak"] >= 70


def test_signs_that_disagree_are_a_weak_signal() -> None:
    assert measured(replace(STRONG, gap=-2.0))["label"] == "weak"
    assert measured(replace(AGAINST, gap=2.0))["label"] == "weak"


def test_one_sign_is_enough() -> None:
    assert measured(replace(CONSISTENT_NOISE, gap=2.0), seed=3)["label"] == "strong"
    told = {"modal_gain": {"value": None, "se": None}, "self_judgement": {"value": 0.4, "se": 0.01}}
    assert signal.label(told) == "against"
    unsure = {"modal_gain": {"value": 0.1, "se": 0.1}, "self_judgement": {"value": 0.52, "se": 0.05}}
    assert signal.label(unsure) == "weak"
    sure = {**unsure, "modal_gain": {"value": 0.1, "se": 0.05}}
    assert signal.label(sure) == "strong"
    exact = {**unsure, "modal_gain": {"value": 0.0, "se": 0.0}}
    assert signal.label(exact) == "weak"


def modal_gain_by_hand(passed: list[bool], behaviour: list[int]) -> float | None:
    """Mean over the most common behaviours of the share of right ones, less the mean of all."""
    ran = [(b, p) for b, p in zip(behaviour, passed, strict=True) if b >= 0]
    if len(ran) < 2:
        return None
    often = Counter(b for b, _ in ran)
    most = [b for b, count in often.items() if count == max(often.values())]
    shares = [np.mean([p for other, p in ran if other == b]) for b in most]
    return float(np.mean(shares) - np.mean(passed))


def test_modal_gain_is_what_a_majority_vote_gains() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        passed, behaviour = rng.random((20, 6)) < 0.5, rng.integers(-1, 3, (20, 6))
        values = signal.modal_gain(Draws(passed, behaviour, behaviour, passed, passed * 1.0))
        for i in range(20):
            expected = modal_gain_by_hand(passed[i].tolist(), behaviour[i].tolist())
            assert (expected is None) == (values.den[i] == 0.0)
            assert values.num[i] == pytest.approx(expected or 0.0)


def test_headroom_is_what_more_tries_would_solve() -> None:
    right = np.array([0, 1, 3, 6])
    passed = np.array([[k < c for k in range(6)] for c in right])
    values = signal.headroom(Draws(passed, passed * 1, passed * 1, passed, passed * 1.0), 3)
    assert values.num.tolist() == pytest.approx([pass_at_k(6, c, 3) - c / 6 for c in right])
    subsets = list(itertools.combinations(passed[1], 3))
    assert values.num[1] == pytest.approx(sum(map(any, subsets)) / len(subsets) - 1 / 6)


def test_the_numbers_come_with_their_errors() -> None:
    """200 sets of samples: the errors that are said are the spread that is seen, problems being new too."""
    found = []
    for seed in range(200):
        right = np.random.default_rng(seed).beta(2.0, 2.0, PROBLEMS)
        found.append(measured(replace(HALF, right=right), seed))
    for name in ("pass_at_1", "modal_gain", "headroom", "wrong_agreement", "self_judgement"):
        values = np.array([one[name]["value"] for one in found])
        said = np.sqrt(np.mean([one[name]["se"] ** 2 for one in found]))
        assert values.std(ddof=1) / said == pytest.approx(1.0, abs=0.2), name
    assert np.mean([one["pass_at_1"]["value"] for one in found]) == pytest.approx(0.5, abs=0.01)


def test_tiers_are_measured_apart() -> None:
    tiers = ["easy", "hard"] * (PROBLEMS // 2)
    right = np.array([0.8, 0.2] * (PROBLEMS // 2))
    law = replace(HALF, right=right)
    found = measured(law, tiers=tiers)
    assert set(found["tiers"]) == {"easy", "hard"}
    whole = draws(law)
    for place, name in enumerate(("easy", "hard")):
        assert found["tiers"][name]["pass_at_1"]["value"] == pytest.approx(whole.passed[place::2].mean())
        own = whole.over(lambda array, place=place: array[place::2])
        alone = signal.measure(own, ["one"] * (PROBLEMS // 2))
        assert alone["tiers"]["one"] == found["tiers"][name]
        assert alone["label"] in ("strong", "weak", "against")
    assert found["pass_at_1"]["value"] == pytest.approx(whole.passed.mean())


def test_too_few_problems_give_no_number_but_a_reason() -> None:
    few = replace(HALF, right=np.full(9, 0.5))
    found = measured(few)
    assert found["label"] == "weak"
    for name in ("pass_at_1", "headroom", "modal_gain", "wrong_agreement", "self_judgement"):
        assert (found[name]["value"], found[name]["se"]) == (None, None)
        assert "10 are needed" in found[name]["reason"]
    assert measured(replace(HALF, right=np.full(10, 0.5)))["pass_at_1"]["value"] is not None
    assert "too few samples" in signal_lines(found)[1]


def test_a_tier_of_few_problems_does_not_silence_the_others() -> None:
    tiers = ["rare"] * 5 + ["common"] * (PROBLEMS - 5)
    found = measured(HALF, tiers=tiers)["tiers"]
    assert found["rare"]["pass_at_1"]["value"] is None
    assert found["rare"]["pass_at_1"]["reason"].startswith("5 problems")
    assert found["common"]["pass_at_1"]["value"] is not None


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_where_no_problem_has_both_right_and_wrong_answers_sureness_says_nothing(rate: float) -> None:
    found = measured(replace(HALF, right=np.full(PROBLEMS, rate)))
    assert found["self_judgement"]["value"] is None
    assert found["self_judgement"]["reason"].startswith("0 problems")
    assert found["modal_gain"]["value"] == 0.0
    assert found["label"] == "weak"


def test_answers_that_did_not_run_have_no_common_behaviour() -> None:
    seen = draws(HALF)
    silent = replace(seen, behaviour=np.full_like(seen.behaviour, -1))
    found = signal.measure(silent, ["all"] * PROBLEMS)
    assert found["modal_gain"]["value"] is None
    assert found["wrong_agreement"]["value"] is None


def test_one_sample_per_problem_still_gives_a_signal() -> None:
    found = signal.measure(draws(HALF, samples=1), ["all"] * PROBLEMS)
    assert found["label"] == "weak"
    assert found["pass_at_1"]["value"] is not None
    assert found["headroom"]["value"] is None


def test_the_signal_is_plain_data_and_said_in_words() -> None:
    for law in (STRONG, AGAINST, CONSISTENT_NOISE, replace(HALF, right=np.full(3, 0.5))):
        found = measured(law)
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        first, second = signal_lines(found)
        assert first.startswith(f"signal: {found['label']} - ")
        assert second
    found = measured(STRONG)
    assert f"pass at 1 {found['pass_at_1']['value']:.3f}" in signal_lines(found)[1]
