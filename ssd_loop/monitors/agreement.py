"""Agreement among wrong answers (collapse): the same mistake learned, which no pass rate shows.

Two measures. How alike wrong answers are says before any training whether errors scatter. It cannot say
whether they take hold: where all but one mistake are unlearned, the rest agree perfectly and nothing is
worse. So what is decided on is how often two answers are wrong alike, which rises only if one mistake gains
ground.
"""

from __future__ import annotations

import numpy as np

from ssd_loop.monitors.contrast import Floats, Values
from ssd_loop.monitors.draws import Draws, counts


def wrong_alike(draws: Draws) -> Values:
    """Chance that two answers to a problem are both wrong and behave alike; says nothing below two answers.

    sum of F_c (F_c - 1) over N (N - 1), over the behaviours c of the wrong ones of N answers; without bias,
    as Simpson's index (Simpson 1949).
    """
    kinds = _mistakes(draws)
    pairs = draws.samples * (draws.samples - 1.0)
    return Values((kinds * (kinds - 1.0)).sum(axis=-1), np.full(kinds.shape[:-1], pairs))


def among_wrong(draws: Draws) -> Values:
    """Chance that two wrong answers to a problem behave alike; says nothing below two of them.

    Simpson's index without bias (Simpson 1949): sum of F_c (F_c - 1) over F (F - 1), over the behaviours c
    of the F wrong answers that ran. Source of its use: collapse literature, section 2, W.
    """
    kinds = _mistakes(draws)
    failed = kinds.sum(axis=-1)
    alike = (kinds * (kinds - 1.0)).sum(axis=-1)
    enough = failed >= 2
    return Values(np.where(enough, alike, 0.0), np.where(enough, failed * (failed - 1.0), 0.0))


def _mistakes(draws: Draws) -> Floats:
    """(..., n, k) wrong answers that ran, by behaviour."""
    return counts(draws.behaviour, ~draws.passed & (draws.behaviour >= 0)).astype(float)
