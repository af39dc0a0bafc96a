"""Paired worsening over its standard error: the one statistic that every monitor shares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Family = Literal["harm", "collapse"]

# Share of the false-alarm rate that each family may spend: .03 and .02 of .05 (collapse literature, 5.2).
BUDGET: dict[Family, float] = {"harm": 0.6, "collapse": 0.4}
MIN_PAIRS = 4


@dataclass(frozen=True)
class Series:
    """One monitored quantity at round 0 and now, unit by unit (problem or document).

    Attributes:
        baseline: Value per unit at round 0.
        current: Value per unit now.
        margin: Worsening that is tolerated, in the unit of the values.
        worse: +1 if a rise is worse, -1 if a fall is.
        relative: Whether worsening is a share of the baseline's mean.
    """

    name: str
    family: Family
    baseline: Mapping[str, float]
    current: Mapping[str, float]
    margin: float
    worse: Literal[1, -1]
    relative: bool = False


@dataclass(frozen=True)
class Reading:
    """What one monitor says in one round. `t` and `threshold` are in standard errors."""

    family: str
    value: float
    baseline: float
    margin: float
    se: float | None
    t: float | None
    slow: float | None
    threshold: float | None
    alarm: bool


def read(series: Series, *, level: float) -> Reading | None:
    """The reading of one series, or None where too few units are in both rounds.

    t = (mean worsening - margin) / standard error over the units measured in both rounds; an alarm is
    a t above the Student quantile of `level`. Source: collapse literature, section 5.2.

    Args:
        series: The quantity.
        level: Chance of a false alarm granted to this one test.
    """
    shared = sorted(set(series.baseline) & set(series.current))
    if len(shared) < MIN_PAIRS:
        return None
    before = np.array([series.baseline[unit] for unit in shared])
    now = np.array([series.current[unit] for unit in shared])
    scale = float(before.mean()) if series.relative else 1.0
    if scale == 0.0:
        return None
    worsening = series.worse * (now - before) / scale
    mean, se = float(worsening.mean()), float(worsening.std(ddof=1)) / math.sqrt(len(shared))
    threshold = float(stats.t.ppf(1.0 - level, len(shared) - 1))
    # All units moved by the same amount: no error to compare with, the margin alone decides.
    t = (mean - series.margin) / se if se > 0.0 else None
    alarm = t > threshold if t is not None else mean > series.margin
    return Reading(
        family=series.family,
        value=float(now.mean()),
        baseline=float(before.mean()),
        margin=series.margin,
        se=se,
        t=t,
        slow=None,
        threshold=threshold,
        alarm=bool(alarm),
    )


def gain_bound(series: Series, *, confidence: float = 0.95) -> float | None:
    """One-sided lower bound of the paired improvement over round 0, in the series' unit."""
    shared = sorted(set(series.baseline) & set(series.current))
    if len(shared) < MIN_PAIRS:
        return None
    gains = [-series.worse * (series.current[u] - series.baseline[u]) for u in shared]
    se = float(np.std(gains, ddof=1)) / math.sqrt(len(shared))
    return float(np.mean(gains)) - float(stats.t.ppf(confidence, len(shared) - 1)) * se
