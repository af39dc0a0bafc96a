"""Noise between trainings that differ in their seed alone: what no amount of sampling averages out.

A/A trainings: the same data and settings, other seeds. Source: collapse literature, section 5.2 step 1, and
5.3, where leaving this noise out quadruples the false alarms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.8  # the estimate is raised to this upper bound, since it comes from very few trainings


def noise(worsenings: Sequence[float], sampling_variances: Sequence[float]) -> float:
    """Upper bound of the standard deviation between seeds, in the monitor's unit.

    tau^2 = variance of the worsenings - mean sampling variance, at least 0, times nu / chi2_{.2, nu} with
    nu one less than the trainings. With two extra trainings that is 2.1 tau.

    Args:
        worsenings: The monitor's worsening against round 0 in each training.
        sampling_variances: Variance of each that the drawing of samples alone explains.
    """
    from scipy import stats

    nu = len(worsenings) - 1
    if nu < 1 or not np.isfinite(worsenings).all():
        return 0.0
    between = float(np.var(worsenings, ddof=1)) - float(np.mean(sampling_variances))
    return math.sqrt(max(between, 0.0) * nu / float(stats.chi2.ppf(1.0 - CONFIDENCE, nu)))
