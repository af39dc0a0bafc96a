"""Before any training: is there anything in the model's own samples to consolidate?

Self-distillation sharpens what the model already prefers. That helps where its most consistent answer is
right more often than its average one, and where it is surer of right answers than of wrong ones; it hurts
where the opposite holds (arXiv 2412.01951 for the theory, arXiv 2603.29292 for consistency as the grade).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ssd_loop.monitors import agreement, judgement, passes
from ssd_loop.monitors.contrast import MIN_UNITS, Values, level
from ssd_loop.monitors.draws import Draws, counts

Label = Literal["strong", "weak", "against"]

SURE = 1.64  # standard errors that a sign is told by, one-sided 5 %


def modal_gain(draws: Draws) -> Values:
    """Accuracy of each problem's most common behaviour minus its mean accuracy, a probability.

    Share of right ones among the samples of the most common behaviour, several equally common ones
    averaged: what a majority vote would gain. Says nothing where fewer than two samples ran.
    """
    ran = counts(draws.behaviour, np.ones_like(draws.passed))
    right = counts(draws.behaviour, draws.passed)
    modal = ran == ran.max(axis=-1, keepdims=True)
    accuracy = np.where(modal & (ran > 0), right / np.maximum(ran, 1), 0.0).sum(axis=-1) / modal.sum(axis=-1)
    enough = ran.sum(axis=-1) >= 2
    return Values(np.where(enough, accuracy - draws.passed.mean(axis=-1), 0.0), enough.astype(float))


def headroom(draws: Draws, k: int) -> Values:
    """pass@k minus pass@1 of each problem: what is within reach but not yet the rule."""
    many, one = passes.measure(draws, k), passes.measure(draws, 1)
    return Values(many.num - one.num, many.den)


def measure(draws: Draws, tiers: Sequence[str]) -> dict[str, Any]:
    """The signal of round 0's samples, over all problems and for each tier, as plain data.

    Args:
        draws: Samples of the held-out panel.
        tiers: Tier of each problem.
    """
    found = _numbers(draws)
    groups = {name: np.array([tier == name for tier in tiers]) for name in dict.fromkeys(tiers)}
    by_tier = {name: _numbers(_rows(draws, rows)) for name, rows in groups.items()}
    return {"label": label(found), **found, "tiers": by_tier}


def label(found: Mapping[str, Mapping[str, Any]]) -> Label:
    """strong: a sign for and none against; against: the reverse; weak: none, or both.

    Args:
        found: The numbers of `measure`; the signs are `modal_gain` and `self_judgement`, against 0 and 1/2.
    """
    signs = {_sign(found["modal_gain"], 0.0), _sign(found["self_judgement"], 0.5)}
    if 1 in signs and -1 not in signs:
        return "strong"
    return "against" if -1 in signs and 1 not in signs else "weak"


def _sign(number: Mapping[str, Any], neutral: float) -> int:
    if number["value"] is None:
        return 0
    away = number["value"] - neutral
    return int(np.sign(away)) if abs(away) > SURE * number["se"] else 0


def _numbers(draws: Draws) -> dict[str, dict[str, Any]]:
    k = max(2, draws.samples // 2)
    return {
        "pass_at_1": _told(passes.measure(draws, 1)),
        "headroom": {"k": k, **_told(headroom(draws, k))},
        "modal_gain": _told(modal_gain(draws)),
        "wrong_agreement": _told(agreement.among_wrong(draws)),
        "self_judgement": _told(judgement.measure(draws), ratio=True),
    }


def _told(values: Values, *, ratio: bool = False) -> dict[str, Any]:
    mean, se, units = level(values, ratio=ratio)
    if units < MIN_UNITS:
        return {"value": None, "se": None, "reason": f"{units} problems tell it, {MIN_UNITS} are needed"}
    return {"value": mean, "se": se}


def _rows(draws: Draws, rows: Any) -> Draws:
    return draws.over(lambda array: array[rows])
