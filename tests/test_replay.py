"""The limits of the null replay, against whole runs that are simulated from a known law."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ssd_loop.config import MARGINS
from ssd_loop.monitors import replay, suite
from ssd_loop.monitors.contrast import Family
from ssd_loop.monitors.draws import Draws
from ssd_loop.monitors.replay import TRIGGER, Limits, Pool, limits, slower
from tests.evidence import Array, Law

BUDGETS: Mapping[Family, float] = {"harm": 0.03, "collapse": 0.02}
NO_MARGIN = dict.fromkeys(MARGINS, 0.0)  # nothing is tolerated: unchanged is at the very edge
MONITORS = {monitor.name: monitor for monitor in suite.sampled(4, 2)}
PASSES = [MONITORS["heldout_pass_at_1"]]
TWO = [*PASSES, suite.sampled(2, 2)[1]]  # pass@1 and pass@2
ALL = [*(replace(m, panel="heldout") for m in MONITORS.values() if m.panel == "probe")] + [
    m for m in MONITORS.values() if m.panel == "heldout"
]


def law(problems: int, seed: int = 0) -> Law:
    return Law(np.random.default_rng(seed).beta(1.5, 1.5, problems))


def pool(problems: int, samples: int, *, looks: int = 3, seed: int = 0, one: Law | None = None) -> Pool:
    drawn = (one or law(problems, seed)).draw(4 * samples, np.random.default_rng(seed))
    return Pool(drawn, samples, looks * samples)


SMALL = {"heldout": pool(30, 2)}


def found(pools: Mapping[str, Pool] = SMALL, monitors: Any = PASSES, **other: Any) -> dict[str, Limits]:
    given: dict[str, Any] = {
        "scored": {},
        "margins": NO_MARGIN,
        "budgets": BUDGETS,
        "horizon": 5,
        "seed": 0,
        "runs": 1000,
        **other,
    }
    return limits(pools, monitors, **given)


def test_the_seed_alone_decides() -> None:
    assert found() == found()
    assert found(seed=1) != found()


def test_the_caller_draws_the_same_after_it() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    found()
    assert (np.random.get_state()[1] == before).all()


def test_a_longer_horizon_asks_for_more_evidence() -> None:
    harm = [found(horizon=horizon)["heldout_pass_at_1"] for horizon in (1, 5, 25)]
    assert harm[0].t < harm[1].t < harm[2].t
    assert harm[0].slow < harm[1].slow < harm[2].slow


def test_more_monitors_ask_for_more_evidence() -> None:
    pools = {**SMALL, "ood": pool(40, 2, seed=1)}
    harm = [m for m in ALL if m.family == "harm"]
    found_for = [
        found(pools, some, runs=4000)["heldout_pass_at_1"]
        for some in (PASSES, [*PASSES, MONITORS["ood_pass_at_1"]], harm)
    ]
    assert found_for[0].t < found_for[1].t
    assert found_for[0].t < found_for[2].t
    assert found_for[0].slow < found_for[1].slow


def test_unchanged_monitors_ask_for_less_the_more_is_tolerated_of_them() -> None:
    """Down to what each monitor asks for alone, which is at its edge whatever its margin is."""
    pools = {**SMALL, "ood": pool(30, 2, seed=1)}
    two = [*PASSES, MONITORS["ood_pass_at_1"]]
    none, some, much = (
        found(pools, two, margins=dict.fromkeys(MARGINS, margin), runs=4000) for margin in (0.0, 0.05, 1.0)
    )
    for m in two:
        assert none[m.name].t > some[m.name].t > much[m.name].t
        alone = found({m.panel: pools[m.panel]}, [m], runs=4000)[m.name]
        assert much[m.name].t == pytest.approx(alone.t, rel=0.1)


def test_a_monitor_with_little_luck_is_not_held_to_the_limits_of_others() -> None:
    """On texts, which stay the same, one draw of luck serves all rounds; on samples each round draws anew."""
    both = found(scored={"reference_nll": ("harm", 1000)}, margins=dict(MARGINS), horizon=10, runs=5000)
    assert both["reference_nll"].t < 2.4 < both["heldout_pass_at_1"].t
    assert both["reference_nll"].t > float(stats.norm.ppf(0.97))


def test_a_smaller_budget_asks_for_more_evidence() -> None:
    strict, lax = (found(budgets={"harm": rate})["heldout_pass_at_1"] for rate in (0.005, 0.2))
    assert lax.t < strict.t
    assert lax.slow < strict.slow


def test_only_what_is_measured_has_a_limit() -> None:
    own = {monitor.name for monitor in PASSES}
    assert set(found()) == own
    assert set(found(scored={"fork_loss": ("collapse", 24)})) == own | {"fork_loss"}
    assert set(found(scored={"fork_loss": ("collapse", 9)})) == own  # too few texts to be read
    assert found(pools={}, monitors=[]) == {}


@pytest.mark.parametrize("horizon", [1, 10])
def test_monitors_that_cannot_be_redrawn_follow_students_law(horizon: int) -> None:
    """One monitor whose luck is that of its texts: one t for a whole run, which the slow arm approaches."""
    given: dict[str, Any] = {"pools": {}, "monitors": [], "scored": {"s": ("harm", 12)}}
    limit = found(**given, horizon=horizon, runs=100_000)["s"]
    t = np.random.default_rng(5).standard_t(11, 400_000)
    slow = (1.0 - 0.6**horizon) * np.maximum(t, 0.0)
    assert np.mean((t > limit.t) | (slow > limit.slow)) == pytest.approx(0.03, abs=0.004)


def test_the_slow_arm_by_hand() -> None:
    slow = np.zeros(4)
    for t in ([1.0, -5.0, np.inf, 2.0], [1.0, 5.0, 1.0, -np.inf], [1.0, 5.0, 1.0, np.nan]):
        slow = slower(np.array(t), slow)
    assert slow.tolist() == pytest.approx([0.784, 3.2, 0.64, 0.8])


def passes_t(right: Array, samples: int, base: Array, of: int, k: int, margin: float) -> Array:
    """t of the loss of pass@k, from counts of right answers: (runs, problems) each; written for this test."""

    def rate(counts: Array, n: int) -> Array:
        none = np.array([math.comb(n - c, k) / math.comb(n, k) for c in range(n + 1)])
        return 1.0 - none[counts]

    lost = rate(base, of) - rate(right, samples)
    excess, se = lost.mean(axis=-1) - margin, lost.std(axis=-1, ddof=1) / math.sqrt(lost.shape[-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(se > 0.0, excess / se, np.where(excess > 0.0, np.inf, -np.inf))


def simulated_alarms(
    rates: Array,
    limit: Sequence[Limits],
    *,
    runs: int,
    horizon: int,
    samples: int,
    base: int | None = None,
    margin: float = 0.0,
) -> Array:
    """Whether each of many unchanged runs raises an alarm: own baselines, second looks, slow arms.

    `limit` holds those of pass@1, pass@2 and so on; `base` fixes how many of round 0's answers to each
    problem were right.
    """
    rng = np.random.default_rng(97)
    size = (runs, len(rates))
    drawn = rng.binomial(4 * samples, rates, size)
    before = drawn if base is None else np.full(size, base)
    ks = range(1, len(limit) + 1)
    bound, slow_bound = (np.array([[getattr(own, arm)] for own in limit]) for arm in ("t", "slow"))
    slow, alarmed = np.zeros((len(limit), runs)), np.zeros(runs, bool)
    for _ in range(horizon):
        right = rng.binomial(samples, rates, size)
        more = right + rng.binomial(3 * samples, rates, size)
        first = np.stack([passes_t(right, samples, before, 4 * samples, k, margin) for k in ks])
        second = np.stack([passes_t(more, 4 * samples, before, 4 * samples, k, margin) for k in ks])
        t = np.where((first > TRIGGER).any(axis=0), second, first)
        slow = np.where(np.isfinite(t), np.maximum(0.4 * np.nan_to_num(t) + 0.6 * slow, 0.0), slow)
        alarmed |= ((t > bound) | (slow > slow_bound)).any(axis=0)
    return alarmed


def test_unchanged_runs_are_stopped_as_often_as_the_budget_says() -> None:
    """Limits from four baselines' own replays, each held against 1,500 whole runs of 10 rounds.

    Two monitors, 60 problems, 4 samples, 16 at round 0. Nominal 3 %.
    """
    one = law(60, seed=3)
    rates = []
    for seed in range(4):
        limit = found({"heldout": pool(60, 4, seed=seed, one=one)}, TWO, horizon=10, runs=4000)
        own = [limit[monitor.name] for monitor in TWO]
        rates.append(simulated_alarms(one.right, own, runs=1500, horizon=10, samples=4).mean())
    assert 0.01 < np.mean(rates) < 0.05


def test_both_arms_and_both_looks_are_in_the_limits() -> None:
    """Either arm alone spends part of the budget, and limits without second looks are other ones."""
    one = law(60, seed=3)
    limit = found({"heldout": pool(60, 4, one=one)}, TWO, horizon=10, runs=2000)
    both = [limit[monitor.name] for monitor in TWO]
    whole, fast, slow = (
        simulated_alarms(one.right, arms, runs=800, horizon=10, samples=4).mean()
        for arms in (
            both,
            [replace(own, slow=np.inf) for own in both],
            [replace(own, t=np.inf) for own in both],
        )
    )
    assert 0.0 < fast < whole
    assert 0.0 < slow < whole
    assert limit != found({"heldout": pool(60, 4, looks=0, one=one)}, TWO, horizon=10, runs=2000)


def test_noise_between_trainings_is_in_the_limits() -> None:
    """It enters numerator and error alike, so the limits hardly move however large it is."""
    quiet, noisy = (
        found(seed_noise=noise, runs=4000)["heldout_pass_at_1"].t
        for noise in ({}, {"heldout_pass_at_1": 0.2})
    )
    assert noisy == pytest.approx(quiet, rel=0.25)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_where_nothing_varies_any_worsening_is_an_alarm(rate: float) -> None:
    """All answers right, or all wrong, at round 0: no pseudo-run has a standard error, so t is -inf in all.

    A later loss that is the same in every problem has t = +inf, which any limit must be below.
    """
    limit = found({"heldout": pool(30, 2, one=Law(np.full(30, rate)))})["heldout_pass_at_1"]
    assert 0.0 <= limit.t < np.inf
    assert 0.0 <= limit.slow < np.inf


def test_a_model_that_failed_nothing_at_round_0_is_not_stopped_for_one_slip() -> None:
    """True rate .999, far inside the margin of .01; round 0 happens to see no failure. Nominal 3 %."""
    given = pool(30, 2, one=Law(np.ones(30)))
    limit = found({"heldout": given}, margins=dict(MARGINS), horizon=10)
    alarms = simulated_alarms(
        np.full(30, 0.999),
        [limit["heldout_pass_at_1"]],
        runs=1000,
        horizon=10,
        samples=2,
        base=8,
        margin=MARGINS["heldout_pass_at_1"],
    )
    assert alarms.mean() < 0.05


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_panel_where_nothing_varies_leaves_the_others_their_limits(rate: float) -> None:
    """A model that solves nothing (or all) must still be stopped for forgetting."""
    scored: dict[str, tuple[Family, int]] = {"reference_nll": ("harm", 24)}
    still = found({"heldout": pool(30, 2, one=Law(np.full(30, rate)))}, scored=scored, runs=4000)[
        "reference_nll"
    ]
    alone = found({}, [], scored=scored, runs=4000)["reference_nll"]
    assert still.t == pytest.approx(alone.t, rel=0.1)
    assert still.slow == pytest.approx(alone.slow, rel=0.1)


def test_replaying_a_large_panel_takes_seconds() -> None:
    """150 problems, 16 samples, 64 at round 0, every monitor of both families, 10 rounds."""
    large = pool(150, 16)
    start = time.process_time()
    found({"heldout": large}, ALL, horizon=10, runs=replay.RUNS)
    assert time.process_time() - start < 10.0


def test_pseudo_rounds_come_from_each_problems_own_samples() -> None:
    """Problems with rates 0 and 1 alone: no pseudo-round differs from its baseline in any problem."""
    rates = np.arange(30) % 2 * 1.0
    given = pool(30, 4, one=Law(rates))
    base, once, twice = replay._pseudo(given, PASSES, 20, np.random.default_rng(0))["heldout_pass_at_1"]
    for values in (base, once, twice):
        assert values.num.shape == (20, 30)
        assert (values.num == rates).all()


def test_the_replay_leaves_the_samples_as_they_were() -> None:
    given = pool(30, 2)
    before: Draws = given.draws.over(np.copy)
    found({"heldout": given}, ALL)
    assert all((getattr(before, name) == getattr(given.draws, name)).all() for name in vars(before))


def test_monitors_on_new_samples_have_new_luck_in_every_round() -> None:
    """Texts are the same in all rounds and so is their luck; samples are not."""
    same, new = (
        found({}, [], scored={name: ("collapse", 100)}, horizon=10, runs=5000)[name]
        for name in ("fork_loss", "recycling")
    )
    assert same.t < new.t
