"""Paired worsening over its standard error: the one statistic that every monitor shares.

Everything here works on arrays with any leading axes, so that one round of one run and thousands of
pseudo-rounds go through the same lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Family = Literal["harm", "collapse"]
Form = Literal["paired", "relative", "ratio"]
Floats = NDArray[np.float64]

MIN_UNITS = 10  # problems or texts below which no standard error is worth having


@dataclass(frozen=True)
class Values:
    """A quantity per unit (problem or text) as a fraction, so that means and ratios of sums are one thing.

    Attributes:
        num: (..., n) numerators.
        den: (..., n) denominators; 0 where the unit says nothing.
    """

    num: Floats
    den: Floats

    def __getitem__(self, index: Any) -> Values:
        return Values(self.num[index], self.den[index])


@dataclass(frozen=True)
class Contrast:
    """How much worse than the baseline, in the quantity's unit; (...) each.

    Attributes:
        value: Level now, over the units that count.
        baseline: Level at round 0, over the same units.
        worsening: Positive is worse.
        se: Standard error of `worsening` over units.
        units: How many units count.
    """

    value: Floats
    baseline: Floats
    worsening: Floats
    se: Floats
    units: NDArray[np.int64]

    def t(self, margin: float | Floats, seed_noise: float = 0.0) -> Floats:
        """(worsening - margin) / standard error; -inf where too few units count.

        Where nothing varies between units the margin alone decides: +inf beyond it, else -inf.

        Args:
            margin: Worsening that is tolerated.
            seed_noise: Standard deviation between trainings that differ in their seed alone, in the
                quantity's unit; it adds to the variance (collapse literature, section 5.2 step 2).
        """
        excess = self.worsening - margin
        se = np.sqrt(self.se**2 + seed_noise**2)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(se > 0.0, excess / se, np.where(excess > 0.0, np.inf, -np.inf))
        return np.where(self.units >= MIN_UNITS, t, -np.inf)


def contrast(current: Values, baseline: Values, form: Form, worse: Literal[1, -1]) -> Contrast:
    """The worsening of `current` against `baseline`; leading axes broadcast.

    paired: mean over units, measured in both, of the difference of their fractions. relative: the same as
    a share of the baseline's mean. ratio: difference of sum(num) / sum(den), its error from the units'
    linearised residuals (Cochran 1977, section 6.3). Source of the paired test: collapse literature,
    sections 4.2 and 5.2.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        if form == "ratio":
            return _ratio(current, baseline, worse)
        both = (current.den > 0.0) & (baseline.den > 0.0)
        units = both.sum(axis=-1)
        before = np.where(both, baseline.num / baseline.den, 0.0)
        now = np.where(both, current.num / current.den, 0.0)
        level, base = now.sum(axis=-1) / units, before.sum(axis=-1) / units
        scale = base if form == "relative" else np.ones_like(base)
        change = worse * (now - before) / scale[..., None]
        mean = worse * (level - base) / scale
        squares = (np.where(both, change - mean[..., None], 0.0) ** 2).sum(axis=-1)
        se = np.sqrt(squares / (units - 1) / units)
    return _counted(level, base, mean, se, units)


def _ratio(current: Values, baseline: Values, worse: int) -> Contrast:
    (level, now, n_now), (base, before, n_before) = _residuals(current), _residuals(baseline)
    count = current.num.shape[-1]
    residual = now - before  # both sum to zero
    se = np.sqrt((residual**2).sum(axis=-1) / (count - 1) / count)
    return _counted(level, base, worse * (level - base), se, np.minimum(n_now, n_before))


def level(values: Values, *, ratio: bool = False) -> tuple[float, float, int]:
    """Mean over units of num / den (or sum(num) / sum(den)), its standard error, and how many say it."""
    count = int((values.den > 0.0).sum())
    if count == 0:
        return 0.0, 0.0, 0
    if ratio:
        mean, residuals, _ = _residuals(values)
        spread, units = residuals, len(residuals)
    else:
        told = values.den > 0.0
        each = values.num[told] / values.den[told]
        mean, spread, units = each.mean(), each - each.mean(), count
    se = float(np.sqrt((spread**2).sum() / max(units - 1, 1) / units))
    return float(mean), se, count


def _residuals(values: Values) -> tuple[Floats, Floats, NDArray[np.int64]]:
    total = values.den.sum(axis=-1)
    level = values.num.sum(axis=-1) / total
    mean = (total / values.den.shape[-1])[..., None]
    return level, (values.num - level[..., None] * values.den) / mean, (values.den > 0.0).sum(axis=-1)


def _counted(level: Floats, base: Floats, mean: Floats, se: Floats, units: Any) -> Contrast:
    """With NaN only where too few units say anything; elsewhere a NaN came in and must not be hidden."""
    return Contrast(
        np.asarray(level),
        np.asarray(base),
        np.asarray(mean),
        np.nan_to_num(np.asarray(se)),
        np.asarray(units),
    )
