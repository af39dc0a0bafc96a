"""Which round is the best, and whether another one is still worth it: paired gains of held-out pass@1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssd_loop.monitors.contrast import Floats

# Reports of round 0, 1, ..., r; None for a round that was not measured, never the first or last.
History = Sequence[Mapping[str, Any] | None]

# One-sided, of the bound that the best round is chosen by (ours; literature: .90).
SELECTION_CONFIDENCE = 0.95
FUTILITY_CONFIDENCE = 0.90  # one-sided (collapse literature, section 5.2 step 7)
FUTILE_ROUNDS = 2
MIN_PROBLEMS = 4
MIN_TOLD = 10  # problems below which nothing is sure


def best_round(history: History) -> int:
    """The round whose held-out gain over round 0 has the highest lower bound, 0 if none is above 0."""
    bounds = {0: 0.0}
    for index, report in enumerate(history):
        gains = _gains(history[0], report) if index and report is not None else None
        if gains is not None:
            bounds[index] = _mean(gains) - _reach(gains, SELECTION_CONFIDENCE)
    return max(bounds, key=lambda index: (bounds[index], -index))


def is_futile(history: History, gain: float) -> bool:
    """Whether each of the last two rounds surely gained less than `gain` over the best before it.

    Surely: the upper bound of the paired gain is below. Rounds with too few samples to tell are no reason
    to stop.
    """
    rounds = [index for index in range(1, len(history)) if history[index] is not None]
    if (
        gain <= 0.0
        or len(rounds) < FUTILE_ROUNDS
        or rounds[-FUTILE_ROUNDS:] != list(range(len(history) - FUTILE_ROUNDS, len(history)))
    ):
        return False
    for index in rounds[-FUTILE_ROUNDS:]:
        gains = _gains(history[best_round(history[:index])], history[index])
        # Where no problem changed at all, as where none was ever solved, there is no error to be sure by.
        if gains is None or len(gains) < MIN_TOLD or not gains.any():
            return False
        if _mean(gains) + _reach(gains, FUTILITY_CONFIDENCE) >= gain:
            return False
    return True


def pass_rates(report: Mapping[str, Any], panel: str) -> dict[str, float]:
    """Share of passed samples per problem; empty where the panel was not run."""
    passed = report["panels"].get(panel, {}).get("passed", {})
    return {name: right / drawn for name, (right, drawn) in passed.items()}


def _gains(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> Floats | None:
    """Gain of each held-out problem's pass rate; None where too few problems are in both."""
    if before is None or now is None:
        return None
    old, new = pass_rates(before, "heldout"), pass_rates(now, "heldout")
    shared = sorted(set(old) & set(new))
    return np.array([new[i] - old[i] for i in shared]) if len(shared) >= MIN_PROBLEMS else None


def _mean(gains: Floats) -> float:
    return float(gains.mean())


def _reach(gains: Floats, confidence: float) -> float:
    """Half width of the one-sided Student interval of the mean."""
    from scipy.special import stdtrit

    se = float(gains.std(ddof=1)) / math.sqrt(len(gains))
    return float(stdtrit(len(gains) - 1, confidence)) * se
