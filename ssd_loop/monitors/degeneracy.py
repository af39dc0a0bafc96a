"""Degeneracy (hard guards): answers cut by length, in a loop, not code at all, or of another length.

Without an error budget: a guard speaks only where chance is out of the question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ssd_loop.monitors.contrast import Floats

Numbers = Floats | np.float64

LOOP_GRAM, LOOP_TIMES = 20, 3  # tokens in a row, and how often they come, that make a loop
CERTAINTY = 0.999  # one-sided confidence of each share's bound: a guard has no error budget to spend
FACTOR = 3.0  # how many times worse is degenerate (collapse literature, section 5.2 step 8)
LENGTH_FACTOR = 2.0  # change of the typical length that is out of hand
LENGTH_SIGMAS = 4.0  # and how many standard errors it must be beyond that


def loops(token_ids: Sequence[int]) -> bool:
    """Whether the same 20 tokens in a row come three times or more."""
    grams = Counter(tuple(token_ids[i : i + LOOP_GRAM]) for i in range(len(token_ids) - LOOP_GRAM + 1))
    return max(grams.values(), default=0) >= LOOP_TIMES


def limit(before: Numbers, of_before: Numbers, floor: float) -> Floats:
    """The share beyond which answers are degenerate: three times round 0's odds, never below `floor`.

    Odds and not shares, so that a model that is cut half of the time can still get worse. Round 0's share
    is taken at its upper Clopper-Pearson bound.

    Args:
        before: Degenerate samples at round 0.
        of_before: Samples at round 0.
        floor: Share that is always tolerated.
    """
    from scipy.special import betaincinv

    upper = np.where(
        before < of_before,
        betaincinv(before + 1.0, np.maximum(of_before - before, 0.5), CERTAINTY),
        1.0,
    )
    return np.asarray(np.maximum(floor, FACTOR * upper / (1.0 + (FACTOR - 1.0) * upper)))


def surely_above(now: Numbers, of_now: Numbers, bound: Numbers) -> NDArray[np.bool_]:
    """Whether the share's lower Clopper-Pearson bound is above `bound`."""
    from scipy.special import betaincinv

    lower = np.where(now > 0, betaincinv(np.maximum(now, 0.5), of_now - now + 1.0, 1.0 - CERTAINTY), 0.0)
    return np.asarray(lower > bound)


def length_change(before: Floats, now: Floats) -> tuple[Floats, Floats]:
    """Mean over problems of the log ratio of lengths, and its standard error; (...) from (..., n).

    Args:
        before: Mean log length of each problem's answers at round 0, log tokens.
        now: The same now.
    """
    change = now - before
    return change.mean(axis=-1), change.std(axis=-1, ddof=1) / np.sqrt(change.shape[-1])


def runaway(mean: Floats, se: Floats) -> NDArray[np.bool_]:
    """Whether the typical length surely doubled or halved."""
    return np.asarray(np.abs(mean) - np.log(LENGTH_FACTOR) > LENGTH_SIGMAS * se)
