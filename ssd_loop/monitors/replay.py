"""Null replay: how large the statistics get in a run in which nothing changes but the samples drawn.

Westfall and Young's max-T (1993) over monitors, rounds, looks and arms at once: pseudo-runs are drawn from
round 0's own samples, with one pseudo-baseline each that all of their rounds share, and every step of the
rule is done to them. So the threshold knows how monitors move together, that the baseline is noisy, and
what second looks and the slow arm add. Source: collapse literature, section 5.2 steps 3 to 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ssd_loop.monitors.contrast import MIN_UNITS, Family, Floats, Values
from ssd_loop.monitors.draws import Draws
from ssd_loop.monitors.suite import Monitor

RUNS = 5000  # pseudo-runs: a rate of .03 is met to +- .005 (two standard errors)
LOOKUPS = 100_000  # comparisons of a round with a baseline, for each monitor; bounds time for long horizons
MIN_RUNS = 1000
SAMPLES = 12_000_000  # drawn for pools in all, which bounds time and memory for large panels
POOL = 1000  # different pseudo-rounds and pseudo-baselines at most; runs share them
CHUNK = 2_000_000  # samples held at once

TRIGGER = 1.64  # t that asks for a second look (collapse literature, section 5.2 step 4)
WEIGHT = 0.4  # of the new t in the slow arm (collapse literature, section 5.2 step 5)


@dataclass(frozen=True)
class Limits:
    """What one family's statistics must pass to raise an alarm, in standard errors.

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


def limits(
    pools: Mapping[str, Pool],
    monitors: Sequence[Monitor],
    scored: Mapping[str, tuple[Family, int]],
    *,
    budgets: Mapping[Family, float],
    horizon: int,
    seed: int,
    seed_noise: Mapping[str, float] | None = None,
    runs: int = RUNS,
) -> dict[Family, Limits]:
    """The limits of each family that hold its error budget over `horizon` rounds.

    Both arms start from half of the budget, and one factor on both then makes the whole rule meet it.

    Args:
        pools: Panels by name.
        monitors: What is measured on their samples.
        scored: Monitors without samples to redraw (scoring is deterministic, or there are too few): their
            family and number of units. Their t is drawn from Student's law, afresh in every round.
        budgets: Chance of a false alarm per run of each family.
        horizon: Rounds that the budget is for.
        seed: Seed of all draws.
        seed_noise: Standard deviation between training seeds, by monitor.
        runs: Pseudo-runs.
    """
    rng = np.random.default_rng(seed)
    runs = int(np.clip(LOOKUPS // horizon, MIN_RUNS, runs))
    t = _sampled_t(pools, monitors, seed_noise or {}, runs, horizon, rng)
    families: dict[str, Family] = {monitor.name: monitor.family for monitor in monitors}
    for name, (family, units) in scored.items():
        if units >= MIN_UNITS:
            t[name], families[name] = rng.standard_t(units - 1, (runs, horizon)), family
    found: dict[Family, Limits] = {}
    for family, budget in budgets.items():
        own = [t[name] for name in t if families[name] == family]
        if own:
            found[family] = _calibrated(np.stack(own), budget)
    return found


def _calibrated(t: Floats, budget: float) -> Limits:
    """Limits for statistics (monitors, runs, rounds) of runs without a change."""
    slow, peak = np.zeros(t.shape[:2]), np.full(t.shape[1], -np.inf)
    for r in range(t.shape[2]):
        slow = slower(t[:, :, r], slow)
        peak = np.maximum(peak, slow.max(axis=0))
    highest = np.where(np.isfinite(t), t, -np.inf).max(axis=(0, 2))
    start, slow_start = (max(float(np.quantile(x, 1.0 - budget / 2.0)), 1e-6) for x in (highest, peak))
    factor = float(np.quantile(np.maximum(highest / start, peak / slow_start), 1.0 - budget))
    return Limits(factor * start, factor * slow_start)


def _sampled_t(
    pools: Mapping[str, Pool],
    monitors: Sequence[Monitor],
    seed_noise: Mapping[str, float],
    runs: int,
    horizon: int,
    rng: np.random.Generator,
) -> dict[str, Floats]:
    """Every monitor's t after the look or looks, (runs, horizon), without a margin: at its very edge."""
    found: dict[str, Floats] = {}
    cost = sum(
        pool.draws.problems * (pool.draws.samples + pool.set_size + pool.more) for pool in pools.values()
    )
    size = int(np.clip(SAMPLES // max(cost, 1), 100, POOL))
    for name, pool in pools.items():
        own = [monitor for monitor in monitors if monitor.panel == name]
        measured = _pseudo(pool, own, size, rng)
        at = rng.integers(size, size=runs), rng.integers(size, size=(runs, horizon))
        noise = {m.name: seed_noise.get(m.name, 0.0) for m in own}
        shift = {m.name: noise[m.name] * rng.standard_normal((runs, horizon)) for m in own}
        first = {m.name: np.empty((runs, horizon)) for m in own}
        pooled = {m.name: np.empty((runs, horizon)) for m in own}
        for monitor in own:
            base, once, twice = (values for values in measured[monitor.name])
            for r in range(horizon):
                for target, values in ((first, once), (pooled, twice)):
                    worse = monitor.contrast(values[at[1][:, r]], base[at[0]])
                    target[monitor.name][:, r] = worse.t(-shift[monitor.name][:, r], noise[monitor.name])
        asks = np.any([first[m.name] > TRIGGER for m in own], axis=0) if pool.more else np.False_
        found |= {m.name: np.where(asks, pooled[m.name], first[m.name]) for m in own}
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
