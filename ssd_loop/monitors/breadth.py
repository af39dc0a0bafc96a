"""Breadth: do hard problems die while easy ones carry the mean (harm), and how many problems gained?"""

from __future__ import annotations

import numpy as np

from ssd_loop.monitors.contrast import Floats, Values
from ssd_loop.monitors.draws import Bools, Draws

SOLVED = 2  # right answers at round 0 that make a problem covered (collapse literature, section 4.3)


def hard_problems(labels: Draws) -> Bools:
    """(..., n) The harder third of the problems that these samples solve at least once.

    The samples must not be those that the loss is measured on, or regression to the mean fakes one
    (collapse literature, section 4.3). Ties are broken by position. Problems never solved are left out:
    they have nothing to lose.
    """
    right = labels.passed.sum(axis=-1)
    n = right.shape[-1]
    solved = right > 0
    order = np.where(solved, right * n + np.arange(n), np.iinfo(np.int64).max)
    rank = order.argsort(axis=-1).argsort(axis=-1)
    hard: Bools = solved & (3 * rank < solved.sum(axis=-1)[..., None])
    return hard


def measure_baseline(draws: Draws, set_size: int) -> Values:
    """pass@1 of the hard problems at round 0: labelled by the first set of samples, measured on the others.

    Every other problem says nothing, which leaves it out of the comparison with a later round.
    """
    hard = hard_problems(draws.part(0, set_size))
    return Values(draws.part(set_size, None).passed.mean(axis=-1), hard.astype(float))


def participation_ratio(baseline: Draws, current: Draws) -> float | None:
    """How evenly problems share the change of pass@1: 1 if all by the same, 1/n if a single one.

    (sum d)^2 / (n (sum d^2 - sum v)), with v each difference's own sampling variance, so that noise does
    not pass for unevenness (collapse literature, section 4.3). None where noise explains all of it.
    """
    before, now = baseline.passed.mean(axis=-1), current.passed.mean(axis=-1)
    noise = _variance(before, baseline.samples) + _variance(now, current.samples)
    change = now - before
    spread = float((change**2).sum() - noise.sum())
    return float(change.sum() ** 2 / (len(change) * spread)) if spread > 0.0 else None


def _variance(rate: Floats, samples: int) -> Floats:
    """Unbiased variance of a share of `samples` Bernoulli draws; 0 for a single draw."""
    variance: Floats = rate * (1.0 - rate) / max(samples - 1, 1)
    return variance


def lost_coverage(baseline: Draws, current: Draws) -> float | None:
    """Share of the problems that round 0 solved at least twice and this round not once."""
    covered = baseline.passed.sum(axis=-1) >= SOLVED
    if not covered.any():
        return None
    return float((covered & ~current.passed.any(axis=-1)).sum() / covered.sum())
