"""Structural variety of programs (collapse): names, comments and layout do not count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssd_loop.config import MonitorConfig
from ssd_loop.monitors.paired import Series


def structural(baseline: Mapping[str, Any], current: Mapping[str, Any], config: MonitorConfig) -> Series:
    """distinct@m on the probe panel, per problem, as a share of round 0's mean."""
    return Series(
        "probe_distinct",
        "collapse",
        _per_problem(baseline),
        _per_problem(current),
        margin=config.diversity_margin,
        worse=-1,
        relative=True,
    )


def _per_problem(report: Mapping[str, Any]) -> dict[str, float]:
    values: dict[str, float] = report["panels"].get("probe", {}).get("diversity", {}).get("per_problem", {})
    return values
