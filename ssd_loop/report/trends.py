"""Every monitor over the rounds, with the band that it may move in: what trends are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ssd_loop.monitors.contrast import Form
from ssd_loop.monitors.decision import Decision, Reading
from ssd_loop.monitors.suite import sampled
from ssd_loop.report.status import spans

Group = Literal["harm", "collapse", "guard", "report"]
Worse = Literal[1, -1]

# +1 where a rise is worse, -1 where a fall is, and how a worsening is measured. The monitors that are read
# off samples say so themselves; these say it where they are computed (`monitors.suite`).
DIRECTIONS: dict[str, tuple[Worse, Form]] = {
    **{monitor.name: (monitor.worse, monitor.form) for monitor in sampled(coverage_k=2, richness_m=2)},
    "reference_nll": (1, "paired"),
    "twin_gap": (1, "paired"),
    "fork_loss": (-1, "relative"),
    "lock_leakage": (1, "paired"),
    "dead_share": (1, "paired"),
    "recycling": (-1, "paired"),
    "self_judgement": (-1, "ratio"),
}
# What a monitor's value is, where its name does not say it.
QUANTITIES = {
    "heldout_pass_at_1": "held-out pass@1",
    "heldout_coverage": "held-out pass@k",
    "hard_tier_pass_at_1": "pass@1 of the harder third",
    "ood_pass_at_1": "out-of-domain pass@1",
    "gate_precision": "share of accepted answers that are right",
    "reference_nll": "NLL of human text, nats a token",
    "twin_gap": "pass@1 over renamed twins",
    "richness": "distinct@m of right answers",
    "wrong_agreement": "pairs of answers that ran and are wrong alike",
    "fork_loss": "entropy at forks, nats summed over a text",
    "lock_leakage": "mass off the text at locks",
    "dead_share": "share of dead positions",
    "recycling": "share of right programs that are new",
    "self_judgement": "area under the curve of own log-prob",
    "length": "tokens of an answer (geometric mean)",
    "merge_residual": "nats a token lost in writing weights",
    "kl_to_base": "KL to base, nats a token",
    "kl_to_previous": "KL to previous round, nats a token",
}
ABSENT = "no reading is there"  # of a round between two that have one


@dataclass(frozen=True)
class Point:
    """One monitor in one round, in the unit of its value.

    Attributes:
        value: None where it cannot be told.
        baseline: Round 0 over the same units.
        tolerated: Where the margin is used up.
        alarm_at: Where this round's noise would have made it an alarm of the fast arm: margin + threshold x
            standard error; a guard's limit.
        alarm_below: The other limit of a guard that has one on either side.
        reason: Why there is no value, or what a guard or the slow arm found.
    """

    round: int
    value: float | None
    baseline: float | None = None
    tolerated: float | None = None
    alarm_at: float | None = None
    alarm_below: float | None = None
    alarm: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Trend:
    """One monitor over the rounds."""

    name: str
    group: Group
    points: tuple[Point, ...]

    @property
    def quantity(self) -> str:
        """What its value is."""
        return QUANTITIES.get(self.name, self.name.replace("_", " "))

    @property
    def alarms(self) -> list[int]:
        """The rounds in which it said stop."""
        return [point.round for point in self.points if point.alarm]

    @property
    def notes(self) -> list[str]:
        """Why values are missing and what was found, one line for each reason, with its rounds."""
        rounds: dict[str, list[int]] = {}
        for point in self.points:
            if point.reason or point.value is None:
                rounds.setdefault(point.reason or "no value", []).append(point.round)
        return [f"round {spans(numbers)}: {reason}" for reason, numbers in rounds.items()]

    @property
    def is_drawn(self) -> bool:
        """Whether there is any value."""
        return any(point.value is not None for point in self.points)


def trends(decisions: Sequence[Decision]) -> list[Trend]:
    """Every monitor of some decisions, those that decide first, in the order in which they were stored."""
    names = dict.fromkeys(name for decision in decisions for name in decision.monitors)
    found = []
    for name in names:
        told = {d.round: d.monitors[name] for d in decisions if name in d.monitors}
        rounds = range(min(told), max(told) + 1)
        points = tuple(
            _point(name, n, told[n]) if n in told else Point(n, None, reason=ABSENT) for n in rounds
        )
        found.append(Trend(name, _group(list(told.values())), points))
    order = ("harm", "collapse", "guard", "report")
    return sorted(found, key=lambda trend: order.index(trend.group))


def _group(readings: Sequence[Reading]) -> Group:
    """The family that a monitor decided for; it may be shown alone in rounds with too few samples."""
    groups: tuple[Group, ...] = ("harm", "collapse", "guard")
    families = {reading.family for reading in readings}
    return next((group for group in groups if group in families), "report")


def _point(name: str, n: int, reading: Reading) -> Point:
    bounds = (_limits if reading.family == "guard" else _band)(name, reading)
    return Point(n, reading.value, reading.baseline, *bounds, reading.alarm, reading.reason)


Bounds = tuple[
    float | None, float | None, float | None
]  # `tolerated`, `alarm_at` and `alarm_below` of a point


def _band(name: str, reading: Reading) -> Bounds:
    """Where the margin is used up, and where an alarm would begin; None where the monitor has neither."""
    if name not in DIRECTIONS or reading.baseline is None or reading.margin is None:
        return None, None, None
    worse, form = DIRECTIONS[name]
    scale = abs(reading.baseline) if form == "relative" else 1.0
    tolerated = reading.baseline + worse * reading.margin * scale
    if reading.threshold is None or reading.se is None:
        return tolerated, None, None
    return tolerated, tolerated + worse * reading.threshold * reading.se * scale, None


def _limits(name: str, reading: Reading) -> Bounds:
    """A guard tolerates all up to its limit, which is on either side for some. That of length is a factor."""
    if reading.margin is None or reading.baseline is None:
        return None, None, None
    above, below = reading.margin, -reading.margin if name == "merge_residual" else None
    if name == "length":
        above, below = reading.baseline * reading.margin, reading.baseline / reading.margin
    return above, above, below
