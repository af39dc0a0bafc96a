"""Pass rates (harm): pass@1 and pass@k of a panel, problem by problem."""

from __future__ import annotations

import math

import numpy as np

from ssd_loop.monitors.contrast import Values
from ssd_loop.monitors.draws import Draws


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that k of n samples hold a right one, c of them being right.

    Source: Chen et al. 2021 (arXiv 2107.03374), equation 1: 1 - C(n - c, k) / C(n, k).
    """
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def measure(draws: Draws, k: int) -> Values:
    """pass@k of each problem, a probability; says nothing where fewer than k samples were drawn."""
    right, n = draws.passed.sum(axis=-1), draws.samples
    if n < k:
        return Values(np.zeros(right.shape), np.zeros(right.shape))
    table = np.array([pass_at_k(n, c, k) for c in range(n + 1)])
    return Values(table[right], np.ones(right.shape))
