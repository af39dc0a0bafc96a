"""Pass rates on held-out problems and outside the trained domain (harm)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssd_loop.config import MonitorConfig
from ssd_loop.monitors.paired import Series

Report = Mapping[str, Any]


def pass_rates(report: Report, panel: str) -> dict[str, float]:
    """Share of passed samples per problem; empty where the panel was not run."""
    passed = report["panels"].get(panel, {}).get("passed", {})
    return {name: right / drawn for name, (right, drawn) in passed.items()}


def heldout(baseline: Report, current: Report, config: MonitorConfig) -> Series:
    """Held-out pass@1, per problem."""
    rates = pass_rates(baseline, "heldout"), pass_rates(current, "heldout")
    return Series("heldout_pass_at_1", "harm", *rates, margin=config.pass_margin, worse=-1)


def transfer(baseline: Report, current: Report, config: MonitorConfig) -> Series:
    """Accuracy outside the trained domain, per item."""
    rates = pass_rates(baseline, "ood"), pass_rates(current, "ood")
    return Series("ood_accuracy", "harm", *rates, margin=config.ood_margin, worse=-1)
