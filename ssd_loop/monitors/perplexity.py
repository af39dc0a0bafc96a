"""Surprise at human-written text (harm): forgetting shows here while pass rates still rise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssd_loop.config import MonitorConfig
from ssd_loop.monitors.paired import Series


def reference_nll(baseline: Mapping[str, Any], current: Mapping[str, Any], config: MonitorConfig) -> Series:
    """Negative log-likelihood of each reference text, nats per token."""
    before, now = baseline["reference"]["per_text"], current["reference"]["per_text"]
    return Series("reference_nll", "harm", before, now, margin=config.nll_margin, worse=1)
