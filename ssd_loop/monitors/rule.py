"""The decision rule. `decide` is pure: the same reports and settings give the same verdict.

First version: hard guards, and paired worsening over its standard error with one threshold per family
that holds for a whole run (Bonferroni over the family's monitors and `monitor.horizon` rounds). The
stated false-alarm rate covers sampling noise only; noise between training seeds is not measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ssd_loop.config import MonitorConfig
from ssd_loop.errors import BadArtifactError
from ssd_loop.monitors import diversity, guards, perplexity, quality
from ssd_loop.monitors.paired import BUDGET, Reading, gain_bound, read
from ssd_loop.store import Metrics

STAGE_VERSION = 1
DECISION = "decision.json"
SERIES = (quality.heldout, quality.transfer, perplexity.reference_nll, diversity.structural)

Kind = Literal["none", "harm", "collapse", "futility", "guard"]


@dataclass(frozen=True)
class Decision:
    """What the monitors say after a round.

    Attributes:
        verdict: "continue" or "stop".
        kind: Why; "none" when going on.
        reason: One sentence with the numbers.
        attribution: Monitors that raised an alarm.
        best_round: Round with the highest lower bound of the paired held-out gain; 0 if none is above 0.
        look: Which look at the samples this was.
    """

    round: int
    verdict: Literal["continue", "remedy", "stop"]
    kind: Kind
    reason: str
    attribution: tuple[str, ...]
    best_round: int
    look: int
    monitors: Mapping[str, Reading]

    def to_json(self) -> dict[str, Any]:
        """The stored form."""
        return asdict(self)


History = Sequence[Mapping[str, Any] | None]


def decide(history: History, config: MonitorConfig) -> Decision:
    """Whether another round is worth it, after the rounds whose evaluation reports are given.

    Args:
        history: Reports of round 0, 1, ..., r; None for one that was not measured, never the first or last.
        config: Margins, false-alarm rate and horizon.
    """
    baseline, current = history[0], history[-1]
    assert baseline is not None
    assert current is not None
    monitors = guards.readings(baseline, current, config) | statistics(baseline, current, config)
    alarms = {name: reading for name, reading in monitors.items() if reading.alarm}
    kind = _kind(alarms)
    return Decision(
        round=len(history) - 1,
        verdict="stop" if alarms else "continue",
        kind=kind,
        reason=_reason(alarms),
        attribution=tuple(alarms),
        best_round=best_round(history, config),
        look=1,
        monitors=monitors,
    )


def statistics(
    baseline: Mapping[str, Any], current: Mapping[str, Any], config: MonitorConfig
) -> dict[str, Reading]:
    """Every monitor that could be read in both rounds."""
    series = [make(baseline, current, config) for make in SERIES]
    found = {}
    for one in series:
        tests = sum(other.family == one.family for other in series) * config.horizon
        level = config.false_alarm_rate * BUDGET[one.family] / tests
        if reading := read(one, level=level):
            found[one.name] = reading
    return found


def best_round(history: History, config: MonitorConfig) -> int:
    """The round whose held-out gain over round 0 has the highest lower bound, 0 if none is above 0."""
    baseline, bounds = history[0], {0: 0.0}
    assert baseline is not None
    measured = {index: report for index, report in enumerate(history) if index and report is not None}
    for index, report in measured.items():
        bound = gain_bound(quality.heldout(baseline, report, config))
        if bound is not None:
            bounds[index] = bound
    return max(bounds, key=lambda index: (bounds[index], -index))


def _kind(alarms: Mapping[str, Reading]) -> Kind:
    families = {reading.family for reading in alarms.values()}
    order: tuple[Kind, ...] = ("guard", "harm", "collapse")
    return next((kind for kind in order if kind in families), "none")


def _reason(alarms: Mapping[str, Reading]) -> str:
    if not alarms:
        return "no monitor is past its threshold"
    parts = [
        f"{name} went from {r.baseline:.3g} to {r.value:.3g}"
        + (f" (t {r.t:.1f}, threshold {r.threshold:.1f})" if r.t is not None else "")
        for name, r in alarms.items()
    ]
    return "; ".join(parts)


def read_decision(folder: Path) -> Decision:
    """The decision of a finished monitor stage.

    Raises:
        BadArtifactError: it is missing or torn.
    """
    path = folder / DECISION
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        readings = {name: Reading(**value) for name, value in data.pop("monitors").items()}
        attribution = tuple(data.pop("attribution"))
        return Decision(**data, attribution=attribution, monitors=readings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BadArtifactError(f"{path} cannot be read; restore it") from None


def summary(decision: Decision) -> Metrics:
    """The few numbers of a decision that a table shows."""
    return {"verdict": decision.verdict, "kind": decision.kind, "best_round": decision.best_round}
