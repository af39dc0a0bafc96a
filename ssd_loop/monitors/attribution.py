"""Which failure it is, from which monitors moved and which did not.

Source: the signature table of the collapse literature, section 7. The order matters: the first signature
that fits is the name, most specific first.
"""

from __future__ import annotations

from collections.abc import Mapping

from ssd_loop.monitors.decision import Reading
from ssd_loop.monitors.replay import TRIGGER

NOTHING = "none"
ELSEWHERE = frozenset({"reference_nll", "ood_pass_at_1"})  # what the trained task's own answers do not show
# What each failure means, for the decision's one sentence.
MEANING = {
    "leak": "panel text got into what is trained on, so the measured gain is not real",
    "merge": "writing the weights changed what the adapters say",
    "diverged": "a value is not finite",
    "cliff": "one training broke the model",
    "runaway": "answers are cut, loop, do not parse or changed their length beyond bounds",
    "noise": "sure places of human text came loose: noise is amplified",
    "self-reinforcing error": "wrong answers agree more and more, or the filter accepts what is wrong",
    "sharpening": "the model's own law narrows: choices close where human code has several",
    "template": "right answers follow one pattern while token choices stay open",
    "recycling": "the rounds repeat each other's programs",
    "narrowing": "hard problems are lost while easy ones carry the mean",
    "forgetting": "ability outside of the trained task is lost",
    "regression": "pass rates fell and no other monitor says why",
}


def attribute(monitors: Mapping[str, Reading]) -> str:
    """The failure's name; "none" where nothing is beyond its limit.

    Args:
        monitors: All readings of the round. A monitor counts as moved if it is beyond its limit, or beyond
            the look-again limit where another one raised the alarm.
    """
    alarms = {name for name, reading in monitors.items() if reading.alarm}
    if not alarms:
        return NOTHING
    return signature(alarms, alarms | set(moved_besides(monitors)))


def moved_besides(monitors: Mapping[str, Reading]) -> dict[str, Reading]:
    """The readings that raise no alarm and would be looked at again."""
    return {n: r for n, r in monitors.items() if not r.alarm and r.t is not None and r.t > TRIGGER}


def signature(alarms: set[str], moved: set[str]) -> str:
    """The first failure whose signature fits what raised the alarm and what else moved."""
    if alarms & {"panel_overlap", "canaries", "twin_gap"}:
        return "leak"
    if "not_finite" in alarms:
        return "diverged"
    if "training_cliff" in alarms:
        return "cliff"
    if "merge_residual" in alarms:
        return "merge"
    if "lock_leakage" in moved:
        return "noise"
    narrows = moved & {"fork_loss", "dead_share", "richness", "recycling"}
    # Whoever learns a few samples by heart also makes wrong answers agree: agreement alone names no error
    # where right answers lose their variety as well.
    # Where a filter accepts nearly all, its precision is the pass rate and says nothing of its own.
    rubber_stamp = any("gate_precision" in s and "heldout_pass_at_1" not in s for s in (alarms, moved))
    if rubber_stamp or "self_judgement" in moved or ("wrong_agreement" in moved and not narrows):
        return "self-reinforcing error"
    if moved & {"fork_loss", "dead_share"}:
        return "sharpening"
    if "richness" in moved:
        return "template"
    # Alone: whoever writes one pattern repeats it over rounds as well, and so does whoever gets better, which
    # is no reason for human text or other tasks to get worse.
    if "recycling" in moved and not alarms <= ELSEWHERE:
        return "recycling"
    if alarms & {"truncated_share", "unparsable_share", "loops_share", "length"}:
        return "runaway"
    if moved & {"hard_tier_pass_at_1", "heldout_coverage"} and "heldout_pass_at_1" not in moved:
        return "narrowing"
    if moved & ELSEWHERE:
        return "forgetting"
    return "regression"
