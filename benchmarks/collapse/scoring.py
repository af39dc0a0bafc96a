"""False alarms, detection delay and attribution, from the round of each run's first alarm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.collapse.modes import ONSET
from benchmarks.collapse.world import Floats

Ints = NDArray[np.int64]


def clopper_pearson(hits: int, of: int, level: float = 0.95) -> tuple[float, float]:
    """Exact two-sided limits of a share (Clopper and Pearson 1934)."""
    tail = (1.0 - level) / 2.0
    low = float(stats.beta.ppf(tail, hits, of - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(1.0 - tail, hits + 1, of - hits)) if hits < of else 1.0
    return low, high


def false_alarms(alarm: Ints, rounds: int) -> dict[str, Any]:
    """Share of healthy runs with an alarm, and its exact 95 % limits."""
    hits, of = int((alarm <= rounds).sum()), len(alarm)
    low, high = clopper_pearson(hits, of)
    return {"alarms": hits, "runs": of, "rate": hits / of, "low": low, "high": high}


def onsets(truth: Floats, margin: float) -> Ints:
    """(runs,) first round (from 1) with a true worsening beyond the margin; one past the last if none."""
    beyond = truth > margin
    return np.where(beyond.any(axis=1), beyond.argmax(axis=1) + 1, truth.shape[1] + 1)


def detection(alarm: Ints, onset: Ints, rounds: int) -> dict[str, Any]:
    """How many runs were caught, and how many rounds after onset; missed runs count as one past the end.

    Runs with an alarm before the provocation began are left out and counted as `early`. A negative delay
    is an alarm after the provocation, before the declared quantity passed its margin.
    """
    counted = alarm >= ONSET
    caught, due = counted & (alarm <= rounds), onset[counted] <= rounds
    delay = (np.minimum(alarm, rounds + 1) - onset)[counted][due]
    low, high = clopper_pearson(int(caught.sum()), max(int(counted.sum()), 1))
    return {
        "runs": len(alarm),
        "early": int((~counted).sum()),
        "detected": float(caught.sum() / max(counted.sum(), 1)),
        "detected_low": low,
        "detected_high": high,
        "onset": float(np.median(onset)),
        "delay_median": float(np.median(delay)) if len(delay) else None,
        "delay_p90": float(np.quantile(delay, 0.9)) if len(delay) else None,
        "delay_mean": float(delay.mean()) if len(delay) else None,
        "within_1": float((delay <= 1).mean()) if len(delay) else None,
    }


def named_right(names: Sequence[str], alarm: Ints, expected: str, rounds: int) -> dict[str, Any]:
    """Share of the detected runs whose failure got the expected name, and all names that were given."""
    given = Counter(name for name, r in zip(names, alarm, strict=True) if ONSET <= r <= rounds)
    total = sum(given.values())
    return {
        "expected": expected,
        "right": given[expected] / total if total else None,
        "names": dict(given.most_common()),
    }


def bound_at(scores: Sequence[Floats], rate: float) -> float:
    """The bound that a share `rate` of all healthy runs passes; every control weighs alike.

    Scores repeat where nothing is noisy, so the bound is the lowest score with no more than that share
    strictly above it.
    """
    peaks = np.concatenate([s.max(axis=1) for s in scores])
    weight = np.concatenate([np.full(len(s), 1.0 / len(s) / len(scores)) for s in scores])
    order = np.argsort(-peaks, kind="stable")
    above = np.cumsum(weight[order])
    at = int(np.searchsorted(above, rate, side="right"))
    return float(peaks[order][min(at, len(peaks) - 1)])
