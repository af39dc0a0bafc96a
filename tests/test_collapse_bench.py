"""The collapse test bed: its law against closed forms, and its short form against the project's monitors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.collapse import modes, pages, rules, scoring, tier_a
from benchmarks.collapse import world as w
from benchmarks.collapse.modes import CONTROLS, MODES, ROUNDS
from benchmarks.collapse.rules import COMPARATORS, Rule, Stacked, Traces
from benchmarks.collapse.world import World
from ssd_loop.monitors import agreement, audit, judgement, passes, recycling, richness, suite
from ssd_loop.monitors.draws import joined

PLAN = replace(tier_a.QUICK, runs=200, seed_runs=200, shared=2, batch=100)
RUNS = {"C1": 10, "C9": 20}  # of a mode; 40 of the others


@pytest.fixture(scope="module")
def world() -> World:
    return w.make(0)


@pytest.fixture(scope="module")
def limit(world: World) -> Stacked:
    return tier_a.shared_limits(world, Rule(), PLAN, 0)


@pytest.fixture(scope="module")
def doses(world: World) -> Mapping[str, float]:
    return {mode.key: modes.declared_dose(world, mode)[0] for mode in MODES}


@pytest.fixture(scope="module")
def healthy(world: World) -> Mapping[str, Traces]:
    return tier_a.controls(world, Rule(), PLAN, 0, list(CONTROLS), PLAN.runs, modes.seed_noise(world))


@pytest.fixture(scope="module")
def ill(world: World, doses: Mapping[str, float]) -> Mapping[str, Traces]:
    return {
        mode.key: tier_a.provoked(
            world, mode, doses[mode.key], Rule(), PLAN, RUNS.get(mode.key, 40), [0, 2, i, 0]
        )
        for i, mode in enumerate(MODES)
    }


def entropy(law: np.ndarray) -> float:
    used = law[law > 0]
    return float(-(used * np.log(used)).sum())


# The operators, against the closed forms of the collapse literature, section 8.1.


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(0.9, [4.15, 3.83, 3.03, 2.18, 0.75]), (0.8, [4.15, 3.40, 1.68, 0.65, 0.01])],
)
def test_learning_at_a_low_temperature_compounds(temperature: float, expected: list[float]) -> None:
    law, found = w.zipf(200), []
    for r in range(11):
        if r in (0, 1, 3, 5, 10):
            found.append(entropy(law))
        law = w.sharpened(law, 1.0 / temperature)
    assert found == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize(("mass", "expected"), [(0.9, [200, 111, 41, 19, 5]), (0.8, [200, 62, 12, 4, 2])])
def test_learning_the_nucleus_compounds(mass: float, expected: list[int]) -> None:
    law, found = w.zipf(200), []
    for r in range(11):
        if r in (0, 1, 3, 5, 10):
            found.append(int((law > 0).sum()))
        law = w.nucleus(law, mass)
    assert found == pytest.approx(expected, abs=1)


def test_learning_few_samples_drifts_as_wright_and_fisher_say() -> None:
    rng, n, rounds = np.random.default_rng(0), 16, 10
    law = np.broadcast_to(w.zipf(95, 0.7), (4000, 95))
    start = (law[0] ** 2).sum()
    for _ in range(rounds):
        law = w.resampled(law, n, 0.0, rng)
    found = (law**2).sum(axis=1)
    expected = 1 - (1 - 1 / n) ** rounds * (1 - start)
    assert found.mean() == pytest.approx(expected, abs=4 * found.std() / np.sqrt(len(found)))


def test_keeping_part_of_the_law_slows_the_drift() -> None:
    rng, law = np.random.default_rng(0), np.broadcast_to(w.zipf(20), (20_000, 20))
    start = (law[0] ** 2).sum()
    found = (w.resampled(law, 8, 0.1, rng) ** 2).sum(axis=1).mean()
    assert found == pytest.approx(start + 0.9**2 * (1 - start) / 8, rel=0.01)


def test_rounding_is_bf16s() -> None:
    x = np.random.default_rng(0).normal(0, 0.02, 10_000).astype(np.float32)
    expected = torch.from_numpy(x).to(torch.bfloat16).to(torch.float32).numpy()
    assert np.array_equal(modes.rounded(x.astype(np.float64), 1.0).astype(np.float32), expected)


# True values, against the project's estimators on many samples and against direct sums.


def test_true_values_are_what_the_estimators_converge_to(world: World) -> None:
    rng = np.random.default_rng(0)
    state = replace(w.start(world), law=w.sharpened(world.law, 1.2))
    found = w.sample(world, state, "heldout", 1, 1500, rng).draws.over(lambda a: a[0])
    assert found.passed.mean(axis=-1) == pytest.approx(w.pass_rate(world, state), abs=0.06)
    right = passes.measure(found, 1).num > 0.2
    distinct = richness.measure(found, w.RICHNESS_M)
    assert distinct.num[right] == pytest.approx(w.richness(world, state.law)[right], abs=0.1)
    alike = agreement.wrong_alike(found)
    assert alike.num / alike.den == pytest.approx(w.agreement(world, state), abs=0.06)
    precise = audit.precision(found)
    assert precise.num.sum() / precise.den.sum() == pytest.approx(w._precision(world, state), abs=0.005)
    few = w.sample(world, state, "heldout", 200, 16, rng).draws
    judged = judgement.measure(few)
    assert judged.num.sum() / judged.den.sum() == pytest.approx(float(w.judgement(world, state)), abs=0.01)


def test_true_novelty_is_what_the_estimator_converges_to(world: World) -> None:
    rng, state = np.random.default_rng(0), w.start(world)
    now, *old = (w.sample(world, state, "heldout", 200, 16, rng).draws for _ in range(4))
    archive = joined(joined(old[0], old[1]), old[2])
    archived = recycling.right_ones(archive)
    found = recycling.novelty(now, archive, archived)
    told = w.pass_rate(world, state) >= 0.1
    rates = np.where(found.den > 0, found.num / np.maximum(found.den, 1), np.nan)[:, told]
    expected = w.novelty(world, state, [state] * 3)[told]
    # Over runs, problem by problem: a problem with few right ones says something in some runs only.
    assert np.nanmean(rates, axis=0).mean() == pytest.approx(float(expected.mean()), abs=0.02)


def test_an_unchanged_model_has_lost_no_novelty_however_many_are_right(world: World) -> None:
    """Right answers twice as often, among themselves as before: no recycling, though programs repeat more."""
    state = w.start(world)
    right = world.right * state.law
    rate = right.sum(axis=-1, keepdims=True)
    doubled = np.minimum(2.0 * rate, 0.95)
    better = replace(state, law=right / rate * doubled + (state.law - right) / (1.0 - rate) * (1.0 - doubled))
    lost = w.truths(world, [state, better, better, better, better], only=["recycling"])["recycling"]
    assert float(lost) == pytest.approx(0.0, abs=1e-9)


def test_reference_positions_are_the_tilted_law(world: World) -> None:
    state = replace(w.start(world), tilt=(0.3, 0.5, 0.0), exponent=1.1)
    seen = w.positions(world, state, None, np.random.default_rng(0))
    text, place = 7, 11  # domain 0
    spread = np.append(world.text[text, place, :-1], world.text[text, place, -1] / w.REST)
    law = spread**1.1 * np.append(np.ones(20), w.REST)
    law[world.human[text, place]] *= 0.0
    rest = law / law.sum()
    untilted = spread**1.1 * np.append(np.ones(20), w.REST)
    p = untilted[world.human[text, place]] / untilted.sum()
    tilted = 1 / (1 + (1 - p) / p * np.exp(0.3))
    whole = (1 - tilted) * rest
    whole[world.human[text, place]] = tilted
    assert seen.nll[text, place] == pytest.approx(-np.log(tilted))
    assert seen.entropy[text, place] == pytest.approx(entropy(whole))
    assert seen.top[text, place] == pytest.approx(whole.max())
    assert seen.tail[text, place] == pytest.approx(whole[-1])


def test_doses_reach_twice_the_margin_two_rounds_after_the_onset(
    world: World, doses: Mapping[str, float]
) -> None:
    for mode in MODES:
        true = modes.true_worsening(world, mode, doses[mode.key], modes.ONSET + 2) / mode.margin
        assert true[-1] == pytest.approx(2.0, abs=0.15), mode.key
        assert (np.abs(true[: modes.ONSET - 1]) < 1e-9).all(), mode.key


# Driving the project's monitors.


def test_parts_measured_once_give_what_the_suite_gives(world: World) -> None:
    base = rules.round0(world, Rule(), 3, [0])
    rng = np.random.default_rng(1)
    now, old = (w.sample(world, w.start(world), "heldout", 3, 16, rng).draws for _ in range(2))
    expected = suite.on_rounds(base.heldout.draws, now, old)
    found = rules._on_rounds(base, now, passes.measure(now, 1), old)
    for name, value in expected.items():
        assert np.array_equal(found[name].worsening, value.worsening)
        assert np.array_equal(found[name].se, value.se)


def test_the_same_seed_gives_the_same_runs(world: World) -> None:
    first, second = (tier_a.controls(world, Rule(), PLAN, 3, ["H5"], 10, {})["H5"] for _ in range(2))
    assert np.array_equal(first.t, second.t)


def test_healthy_runs_are_left_alone(world: World, healthy: Mapping[str, Traces], limit: Stacked) -> None:
    noisy = tier_a.shared_limits(world, Rule(seed_noise=modes.seed_noise(world)), PLAN, 0)
    found, _ = tier_a.healthy_report(healthy, limit, noisy, Rule())
    for key, row in found.items():
        assert row["low"] < 0.05, (key, row)


def test_the_limits_hold_their_budget_at_a_margins_edge(world: World, limit: Stacked) -> None:
    traces = tier_a.at_the_edge(world, Rule(), PLAN, 0, "H0", "heldout_pass_at_1", {}, 300)
    found = tier_a._alarms(traces, limit, Rule())
    assert found["low"] < 0.05
    assert found["alarms"] > 0  # a rule that never speaks would pass the line above


def test_two_standard_errors_are_no_rule(healthy: Mapping[str, Traces]) -> None:
    rule = COMPARATORS[0]
    peaks = rule.score(healthy["H0"]).max(axis=1)
    assert (peaks > rule.habitual).mean() > 0.5


def test_every_mode_is_detected(world: World, ill: Mapping[str, Traces], limit: Stacked) -> None:
    for mode in MODES:
        found = tier_a.mode_report(mode, ill[mode.key], limit, Rule(), 1.0)
        assert found["detected"] >= 0.9, (mode.key, found)


NAMED = ("C2", "C3", "C4", "C5", "C6", "C8", "C10", "C11", "C12", "C13")  # C1, C9: see docs; C7: most


def test_failures_get_their_names(world: World, ill: Mapping[str, Traces], limit: Stacked) -> None:
    for mode in MODES:
        if mode.key in NAMED:
            found = tier_a.mode_report(mode, ill[mode.key], limit, Rule(), 1.0)["attribution"]
            assert found["right"] >= 0.9, (mode.key, found)


def test_a_wrong_limit_would_be_seen(healthy: Mapping[str, Traces]) -> None:
    low: Stacked = dict.fromkeys(Rule().names, (np.float64(0.5), np.float64(0.5)))
    alarm = rules.first_above(rules.judged(healthy["H3"], low).score, 1.0)
    assert scoring.false_alarms(alarm, ROUNDS)["low"] > 0.05


# Scoring.


def test_exact_limits_of_a_share() -> None:
    assert scoring.clopper_pearson(0, 100) == pytest.approx((0.0, 0.0362), abs=1e-4)
    assert scoring.clopper_pearson(5, 100) == pytest.approx((0.0164, 0.1128), abs=1e-4)


def test_early_and_missed_alarms_are_kept_apart() -> None:
    alarm, onset = np.array([1, 4, 5, 11]), np.array([4, 4, 4, 4])
    found: dict[str, Any] = scoring.detection(alarm, onset, ROUNDS)
    assert found["early"] == 1
    assert found["detected"] == pytest.approx(2 / 3)
    assert found["delay_mean"] == pytest.approx((0 + 1 + 7) / 3)


def test_the_bound_is_passed_by_the_given_share_of_all_controls() -> None:
    rng = np.random.default_rng(0)
    scores = [rng.normal(size=(1000, 5)), rng.normal(1.0, 1.0, size=(300, 5))]
    bound = scoring.bound_at(scores, 0.05)
    assert np.mean([(x.max(axis=1) > bound).mean() for x in scores]) == pytest.approx(0.05, abs=0.004)


def test_tables_are_square() -> None:
    text = pages.table(["a", "b"], [["1", "2"]])
    assert text == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
