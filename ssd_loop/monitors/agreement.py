"""Agreement among wrong answers (collapse): the same mistake learned, which no pass rate shows."""

from __future__ import annotations

import numpy as np

from ssd_loop.monitors.contrast import Values
from ssd_loop.monitors.draws import Draws, counts


def measure(draws: Draws) -> Values:
    """Chance that two wrong answers to a problem behave alike; says nothing below two of them.

    Simpson's index without bias (Simpson 1949): sum of F_c (F_c - 1) over F (F - 1), over the behaviours c
    of the F wrong answers that ran. Source of its use: collapse literature, section 2, W.
    """
    wrong = ~draws.passed & (draws.behaviour >= 0)
    kinds = counts(draws.behaviour, wrong).astype(float)
    failed = kinds.sum(axis=-1)
    alike = (kinds * (kinds - 1.0)).sum(axis=-1)
    enough = failed >= 2
    return Values(np.where(enough, alike, 0.0), np.where(enough, failed * (failed - 1.0), 0.0))
