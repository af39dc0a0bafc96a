"""Surprise at human-written text (harm): forgetting shows here while pass rates still rise."""

from __future__ import annotations

from ssd_loop.monitors.contrast import Values
from ssd_loop.monitors.positions import Positions


def measure(positions: Positions) -> Values:
    """Negative log-likelihood of each reference text, nats per token."""
    return Values(*positions.means(positions.nll))
