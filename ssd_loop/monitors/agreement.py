"""Agreement among wrong answers (collapse): the same mistake learned, which no pass rate shows.

Two measures. How alike wrong answers are says before any training whether errors scatter. It cannot say
whether they take hold: where all but one mistake are unlearned, the rest agree perfectly and nothing is
worse. So what is decided on is how often two answers are wrong alike, which rises only if one mistake gains
ground. Both are counted among answers that ran: what crashed has no behaviour, and a model that learns to
write programs that run would otherwise seem to agree more.
"""

from __future__ import annotations

import numpy as np

from ssd_loop.monitors.contrast import Floats, Values
from ssd_loop.monitors.draws import Draws, counts


def wrong_alike(draws: Draws) -> Values:
    """Chance that two answers that ran are both wrong and behave alike; says nothing below two of them.

    sum of F_c (F_c - 1) over N (N - 1), over the behaviours c of the wrong ones of N answers that ran;
    without bias, as Simpson's index (Simpson 1949).
    """
    return _alike(draws, (draws.passed | (draws.behaviour >= 0)).sum(axis=-1).astype(float))


def among_wrong(draws: Draws) -> Values:
    """Chance that two wrong answers to a problem behave alike; says nothing below two of them.

    Simpson's index without bias (Simpson 1949): sum of F_c (F_c - 1) over F (F - 1), over the behaviours c
    of the F wrong answers that ran. Source of its use: collapse literature, section 2, W.
    """
    return _alike(draws, _mistakes(draws).sum(axis=-1))


def _alike(draws: Draws, among: Floats) -> Values:
    """Ordered pairs that are wrong alike, over all ordered pairs of so many answers to each problem."""
    kinds = _mistakes(draws)
    return Values((kinds * (kinds - 1.0)).sum(axis=-1), among * np.maximum(among - 1.0, 0.0))


def _mistakes(draws: Draws) -> Floats:
    """(..., n, k) wrong answers that ran, by behaviour."""
    return counts(draws.behaviour, ~draws.passed & (draws.behaviour >= 0)).astype(float)
