"""Null replay: how large the statistics get in a run in which nothing gets worse than is tolerated.

Resampling after Westfall and Young (1993) over monitors, rounds, looks and arms at once: pseudo-runs are
drawn from round 0's own samples, with one pseudo-baseline each that all of their rounds share, and every
step of the rule is done to them. So the limits know how monitors move together, that the baseline is noisy,
and what second looks and the slow arm add. Source: collapse literature, section 5.2 steps 3 to 5.

What is replayed is the worst healthy run: one monitor of the family at the very edge of its margin in every
round, the others unchanged. The limits hold for whichever monitor that is. All of them at their edges at
once would ask for limits so high that real harm is found rounds later (decision record 12); where panels are
small, so that margins are less than noise, the two come to the same.

A monitor's limit is one common factor times what it reaches by itself: max-T of statistics that are each
measured in their own quantile. One limit for all in standard errors would hold a monitor with little luck of
its own, such as one on texts that never change, to the limits of the luckiest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ssd_loop.monitors.contrast import MIN_UNITS, Family, Floats, Values
from ssd_loop.monitors.draws import Draws
from ssd_loop.monitors.suite import NEW_SAMPLES, Monitor

RUNS = 5000  # pseudo-runs: a rate of .03 is met to +- .005 (two standard errors)
LOOKUPS = 100_000  # comparisons of a round with a baseline, for each monitor; bounds time for long horizons
MIN_RUNS = 1000
SAMPLES = 40_000_000  # drawn for pools in all, which bounds time and memory for large panels
POOL = 1000  # different pseudo-rounds and pseudo-baselines at most; runs share them
CHUNK = 2_000_000  # samples held at once

TRIGGER = 1.64  # t that asks for a second look (collapse literature, section 5.2 step 4)
# Standard deviation of the slow arm where t is standard normal in every round: sqrt(w / (2 - w)).
SLOW_SPREAD = 0.5
WEIGHT = 0.4  # of the new t in the slow arm (collapse literature, section 5.2 step 5)


@dataclass(frozen=True)
class Limits:
    """What one monitor's statistics must pass to raise an alarm, in standard errors.

    Attributes:
        t: For a round's own t.
        slow: For the slow arm.
    """

    t: float
    slow: float


@dataclass(frozen=True)
class Pool:
    """Round 0's samples of one panel, and how many a later round draws.

    Attributes:
        draws: (n, J x N) samples.
        set_size: N, samples per problem of a later round.
        more: Samples per problem that a second look adds; 0 for none.
    """

    draws: Draws
    set_size: int
    more: int


def slower(t: Floats, before: Floats) -> Floats:
    """The slow arm's statistic after a round: .4 t + .6 of the one before, never below 0.

    The floor is ours: rounds far inside the margin would else be a credit that later harm has to use up. A
    t that is not finite counts as nothing said.
    """
    return np.where(np.isfinite(t), np.maximum(WEIGHT * t + (1.0 - WEIGHT) * before, 0.0), before)


@dataclass(frozen=True)
class Null:
    """Statistics t of one monitor in runs without harm, (runs, horizon) each.

    Attributes:
        edge: With a worsening that is just the margin.
        still: Without any.
    """

    edge: Floats
    still: Floats


def limits(
    pools: Mapping[str, Pool],
    monitors: Sequence[Monitor],
    scored: Mapping[str, tuple[Family, int]],
    *,
    margins: Mapping[str, float],
    budgets: Mapping[Family, float],
    horizon: int,
    seed: int,
    seed_noise: Mapping[str, float] | None = None,
    runs: int = RUNS,
) -> dict[str, Limits]:
    """The limits of each monitor with which its family holds its error budget over `horizon` rounds.

    Args:
        pools: Panels by name.
        monitors: What is measured on their samples.
        scored: Monitors not redrawn from round 0's samples: their family and number of units. Their t
            is drawn from Student's law: once for a whole run on texts, whose luck is the same in every round,
            and afresh in every round where samples are new (`suite.NEW_SAMPLES`). Unchanged, they are taken
            not to move at all.
        margins: Worsening that is tolerated, by monitor.
        budgets: Chance of a false alarm per run of each family.
        horizon: Rounds that the budget is for.
        seed: Seed of all draws.
        seed_noise: Standard deviation between training seeds, by monitor.
        runs: Pseudo-runs.
    """
    rng = np.random.default_rng(seed)
    runs = int(np.clip(LOOKUPS // horizon, MIN_RUNS, runs))
    nulls = _sampled(pools, monitors, margins, seed_noise or {}, runs, horizon, rng)
    families: dict[str, Family] = {monitor.name: monitor.family for monitor in monitors}
    for name, (family, units) in scored.items():
        if units >= MIN_UNITS:
            draws = horizon if name in NEW_SAMPLES else 1
            luck = np.repeat(rng.standard_t(units - 1, (runs, draws)), horizon // draws, axis=1)
            nulls[name], families[name] = Null(luck, np.full_like(luck, -np.inf)), family
    found: dict[str, Limits] = {}
    for family, budget in budgets.items():
        found |= _calibrated({name: null for name, null in nulls.items() if families[name] == family}, budget)
    return found


def _calibrated(nulls: Mapping[str, Null], budget: float) -> dict[str, Limits]:
    """Limits that hold the budget whichever monitor is at its edge.

    Each monitor starts from what its own two arms pass in half of the budget each; one factor on all of them
    then makes the whole family meet it. The limits are never below what one comparison with normal noise
    needs: where round 0 happened to see no failure, redrawing its samples shows no noise either, and a single
    slip must be no alarm.
    """
    from scipy.special import ndtri

    least = float(ndtri(1.0 - budget))
    edge = {name: _peaks(null.edge) for name, null in nulls.items()}
    alone = {
        name: Limits(*(max(float(np.quantile(arm, 1.0 - budget / 2.0)), 1e-6) for arm in arms))
        for name, arms in edge.items()
    }
    still = {name: _share(_peaks(null.still), alone[name]) for name, null in nulls.items()}
    factor = 0.0
    for name, arms in edge.items():
        others = [share for other, share in still.items() if other != name]
        worst = np.max([_share(arms, alone[name]), *others], axis=0)
        factor = max(factor, float(np.quantile(worst, 1.0 - budget)))
    return {
        name: Limits(max(factor * own.t, least), max(factor * own.slow, least * SLOW_SPREAD))
        for name, own in alone.items()
    }


def _share(arms: tuple[Floats, Floats], limit: Limits) -> Floats:
    """How much of its limits a run's statistics reach: above 1 is an alarm."""
    return np.maximum(arms[0] / limit.t, arms[1] / limit.slow)


def _peaks(t: Floats) -> tuple[Floats, Floats]:
    """The largest t of each run, and the largest value of its slow arm."""
    slow, peak = np.zeros(t.shape[0]), np.zeros(t.shape[0])
    for r in range(t.shape[1]):
        slow = slower(t[:, r], slow)
        peak = np.maximum(peak, slow)
    # Nothing varies in a monitor that never has a finite t: it needs no limit and must not spoil the others'.
    return np.maximum(t.max(axis=1), 0.0), peak


def _sampled(
    pools: Mapping[str, Pool],
    monitors: Sequence[Monitor],
    margins: Mapping[str, float],
    seed_noise: Mapping[str, float],
    runs: int,
    horizon: int,
    rng: np.random.Generator,
) -> dict[str, Null]:
    """Every monitor's t after the look or looks, at the edge of its margin and without a change.

    A second look is taken of a whole panel, where the monitor at its edge or an unchanged one asks for it.
    """
    found: dict[str, Null] = {}
    cost = sum(
        pool.draws.problems * (pool.draws.samples + pool.set_size + pool.more) for pool in pools.values()
    )
    size = int(np.clip(SAMPLES // max(cost, 1), 100, POOL))
    for name, pool in pools.items():
        own = [monitor for monitor in monitors if monitor.panel == name]
        measured = _pseudo(pool, own, size, rng)
        bases, rounds = rng.integers(size, size=runs), rng.integers(size, size=(runs, horizon))
        edge: dict[str, list[Floats]] = {}
        still: dict[str, list[Floats]] = {}
        for monitor in own:
            noise = seed_noise.get(monitor.name, 0.0)
            shift = noise * rng.standard_normal((runs, horizon))
            base, once, twice = measured[monitor.name]
            for values in (once, twice):
                at_edge, unmoved = np.empty((runs, horizon)), np.empty((runs, horizon))
                for r in range(horizon):
                    worse = monitor.contrast(values[rounds[:, r]], base[bases])
                    at_edge[:, r] = worse.t(-shift[:, r], noise)
                    unmoved[:, r] = worse.t(margins[monitor.name] - shift[:, r], noise)
                edge.setdefault(monitor.name, []).append(at_edge)
                still.setdefault(monitor.name, []).append(unmoved)
        suspicious = np.any([first > TRIGGER for first, _ in still.values()], axis=0)
        for monitor in own:
            (first, pooled), (calm, calm_pooled) = edge[monitor.name], still[monitor.name]
            asked = suspicious | (first > TRIGGER) if pool.more else np.False_
            found[monitor.name] = Null(
                np.where(asked, pooled, first),
                np.where(suspicious if pool.more else np.False_, calm_pooled, calm),
            )
    return found


def _pseudo(
    pool: Pool, monitors: Sequence[Monitor], size: int, rng: np.random.Generator
) -> dict[str, tuple[Values, Values, Values]]:
    """Every monitor at `size` pseudo-baselines, and at as many pseudo-rounds after one look and after two."""
    n, of_pool = pool.draws.problems, pool.draws.samples
    both = pool.set_size + pool.more
    parts: dict[str, list[tuple[Values, Values, Values]]] = {monitor.name: [] for monitor in monitors}
    step = max(1, CHUNK // (n * max(of_pool, both)))
    for start in range(0, size, step):
        count = min(step, size - start)
        base = pool.draws.chosen(rng.integers(of_pool, size=(count, n, of_pool), dtype=np.int32))
        twice = pool.draws.chosen(rng.integers(of_pool, size=(count, n, both), dtype=np.int32))
        once = twice.part(0, pool.set_size)
        for monitor in monitors:
            measured_twice = monitor.measure(twice) if pool.more else monitor.measure(once)
            parts[monitor.name].append(
                (monitor.at_baseline(base, pool.set_size), monitor.measure(once), measured_twice)
            )
    return {name: _together(found) for name, found in parts.items()}


def _together(parts: Sequence[tuple[Values, Values, Values]]) -> tuple[Values, Values, Values]:
    first, second, third = (
        Values(np.concatenate([v.num for v in column]), np.concatenate([v.den for v in column]))
        for column in zip(*parts, strict=True)
    )
    return first, second, third
