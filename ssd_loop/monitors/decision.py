"""What the monitors say after a round, and its stored form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ssd_loop.durable import finite
from ssd_loop.errors import BadArtifactError
from ssd_loop.store import Metrics

DECISION = "decision.json"

Kind = Literal["none", "harm", "collapse", "futility", "guard"]


@dataclass(frozen=True)
class Reading:
    """What one monitor says in one round, as `decision.json` holds it.

    Attributes:
        family: "harm" or "collapse" (decided on by the threshold), "guard" (a hard limit), or "report".
        value: Level now; None where it cannot be told.
        baseline: Level at round 0, over the same units.
        margin: Worsening that is tolerated; for a guard its limit.
        se: Standard error of the worsening.
        t: (worsening - margin) / standard error, from both looks where there were two.
        slow: Exponentially weighted mean of t over rounds, the slow arm's statistic.
        threshold: Limit of t for this monitor in this run.
        slow_threshold: Limit of `slow`.
        alarm: Whether the monitor says stop.
        reason: Why there is no number, or what a guard found.
    """

    family: str
    value: float | None
    baseline: float | None
    margin: float | None
    se: float | None = None
    t: float | None = None
    slow: float | None = None
    threshold: float | None = None
    slow_threshold: float | None = None
    alarm: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Decision:
    """What the monitors say after a round.

    Attributes:
        verdict: "continue", "remedy" (go on with changed inputs) or "stop".
        kind: Why; "none" when going on.
        reason: One sentence with the numbers.
        attribution: Name of the failure; "none" without an alarm.
        best_round: Round with the highest lower bound of the paired held-out gain; 0 if none is above 0.
        look: How many looks at the samples this took.
    """

    round: int
    verdict: Literal["continue", "remedy", "stop"]
    kind: Kind
    reason: str
    attribution: str
    best_round: int
    look: int
    monitors: Mapping[str, Reading]

    def to_json(self) -> dict[str, Any]:
        """The stored form; what is not finite becomes null."""
        stored: dict[str, Any] = finite(asdict(self))
        return stored


def nearest(readings: Mapping[str, Reading]) -> str | None:
    """The statistic that is nearest to its limit, such as "recycling, slow 1.4 of 1.55".

    None where nothing is worse than its margin allows.
    """
    worse = [
        (name, arm, value, limit)
        for name, reading in readings.items()
        for arm, value, limit in (
            ("t", reading.t, reading.threshold),
            ("slow", reading.slow, reading.slow_threshold),
        )
        if value is not None and limit is not None and value > 0.0
    ]
    if not worse:
        return None
    name, arm, value, limit = max(worse, key=lambda found: found[2] / found[3])
    return f"{name}, {arm} {value:.3g} of {limit:.3g}"


def read_decision(folder: Path) -> Decision:
    """The decision of a finished monitor stage.

    Raises:
        BadArtifactError: it is missing or torn.
    """
    path = folder / DECISION
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        readings = {name: Reading(**value) for name, value in data.pop("monitors").items()}
        return Decision(**data, monitors=readings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BadArtifactError(f"{path} cannot be read; restore it") from None


def summary(decision: Decision) -> Metrics:
    """The numbers of a decision that tables show; monitors that could not be read are left out."""
    shown: Metrics = {
        "verdict": decision.verdict,
        "kind": decision.kind,
        "attribution": decision.attribution,
        "best_round": decision.best_round,
        "look": decision.look,
    }
    for name, reading in finite({n: asdict(r) for n, r in decision.monitors.items()}).items():
        shown |= {
            f"{name}{ending}": reading[key]
            for ending, key in (("", "value"), ("_t", "t"), ("_slow", "slow"))
            if reading[key] is not None
        }
    return shown
