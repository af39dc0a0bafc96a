"""Hard limits: a model that only rambles or no longer writes code is stopped without statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssd_loop.config import MonitorConfig
from ssd_loop.monitors.paired import Reading


def readings(
    baseline: Mapping[str, Any], current: Mapping[str, Any], config: MonitorConfig
) -> dict[str, Reading]:
    """Share of held-out answers cut by length, and share without a program that parses.

    A guard speaks only where the model got worse than it was at round 0, and there is none for what the
    panel does not tell, such as code where answers are numbers.
    """
    before, now = baseline["panels"]["heldout"], current["panels"]["heldout"]
    limits = {
        "truncated_share": config.truncated_limit,
        "unparsable_share": config.unparsable_limit,
    }
    return {
        f"heldout_{name}": _reading(before[name], now[name], limit)
        for name, limit in limits.items()
        if name in before and name in now
    }


def _reading(before: float, now: float, limit: float) -> Reading:
    return Reading(
        family="guard",
        value=now,
        baseline=before,
        margin=limit,
        se=None,
        t=None,
        slow=None,
        threshold=None,
        alarm=now > limit and now > before,
    )
