"""What stages measured, as it is stored and as it is shown; nothing is computed here.

It imports little, because `status` is asked often and must not wait for libraries that it has no use for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_loop.durable import read_json
from ssd_loop.errors import BadArtifactError
from ssd_loop.store import Metrics

REPORT = "report.json"  # of an evaluation
# What a reader of a round's own gain must know.
CHOSEN = "the best round was chosen on the held-out panel, which flatters its gain there"


@dataclass(frozen=True)
class Difference:
    """A paired difference of means over problems.

    Attributes:
        problems: Measured both times.
        before: Mean over them, a share.
        after: The same later.
        mean: after - before.
        low: Lower end of the 95 % interval; None where there is no spread to judge by.
        high: Upper end.
    """

    problems: int
    before: float
    after: float
    mean: float
    low: float | None
    high: float | None

    @property
    def direction(self) -> int:
        """+1 or -1 where the whole interval is above or below zero, else 0."""
        if self.low is None or self.high is None:
            return 0
        return (self.low > 0.0) - (self.high < 0.0)


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a finished evaluation.

    Raises:
        BadArtifactError: it is missing, torn, or not what an evaluation writes.
    """
    report = read_json(folder / REPORT)
    try:
        headline(report)  # all that is asked of it first
    except (AttributeError, KeyError, TypeError):
        raise BadArtifactError(f"{folder / REPORT} is no report of an evaluation; restore it") from None
    return report


def headline(report: Mapping[str, Any]) -> Metrics:
    """The few numbers of a report that a table shows; names are stable, they are W&B's too."""
    metrics: Metrics = {"tokens": sum(p["tokens"] for p in report["panels"].values())}
    for name, panel in report["panels"].items():
        for k, value in panel["pass_at"].items():
            metrics[f"{name}_pass_at_{k}"] = value["mean"]
            metrics[f"{name}_pass_at_{k}_se"] = value["se"]
        metrics[f"{name}_truncated_share"] = panel["truncated_share"]
        if (diversity := panel.get("diversity")) and diversity["distinct"]:
            metrics[f"{name}_distinct_at_{diversity['m']}"] = diversity["distinct"]["mean"]
    metrics["reference_nll"] = report["reference"]["nll"]["mean"]
    metrics["reference_perplexity"] = report["reference"]["perplexity"]
    return metrics


def share(value: float | None, error: float | None = None) -> str:
    """A share in per cent, with its standard error."""
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + (f" ± {100 * error:.1f}" if error is not None else "")


def points(difference: Difference) -> str:
    """A difference of shares in percentage points, with its interval."""
    if difference.low is None or difference.high is None:
        return f"{100 * difference.mean:+.1f}"
    return f"{100 * difference.mean:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def rival(name: str) -> str:
    """What the trained model is held against, by its name in `compared`."""
    return "the base, both as measured" if name.endswith("both") else f"the base, {name}"


def signal_lines(found: Mapping[str, Any]) -> list[str]:
    """The signal before training in words (`ssd_loop.monitors.signal.measure`), for a terminal."""
    meaning = {
        "strong": "the model is more often right where it is consistent or sure: what a gain needs, "
        "no forecast of one",
        "weak": "consistency and sureness do not tell right from wrong here: expect little",
        "against": "the model is more often wrong where it is consistent or sure: expect harm",
    }
    numbers = ", ".join(
        f"{name.replace('_', ' ')} {found[name]['value']:.3f} +- {found[name]['se']:.3f}"
        for name in ("pass_at_1", "headroom", "modal_gain", "wrong_agreement", "self_judgement")
        if found[name]["value"] is not None
    )
    return [f"signal: {found['label']} - {meaning[found['label']]}", numbers or "too few samples to tell"]
