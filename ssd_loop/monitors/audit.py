"""Audit of the run's own filter (harm): does what it accepts still pass tests that it never saw?

A filter that the model learns to please accepts more and more while precision falls ("rubber stamp",
arXiv 2606.28438). It is audited on held-out samples, whose hidden tests no filter uses.
"""

from __future__ import annotations

from ssd_loop.monitors.contrast import Values
from ssd_loop.monitors.draws import Draws


def precision(draws: Draws) -> Values:
    """P(passes hidden tests | accepted), per problem as right accepted over accepted samples."""
    right = (draws.accepted & draws.passed).sum(axis=-1).astype(float)
    return Values(right, draws.accepted.sum(axis=-1).astype(float))


def acceptance(draws: Draws) -> Values:
    """P(accepted), per problem as accepted over all samples."""
    accepted = draws.accepted.sum(axis=-1).astype(float)
    return Values(accepted, 0.0 * accepted + draws.samples)
