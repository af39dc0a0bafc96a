"""Structural richness of right answers (collapse): how many different programs a few samples hold.

Names, comments and layout do not count (`ssd_loop.programs.canonical_hash`). Only right programs do: a
model that turns scattered wrong answers into right ones loses no richness by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ssd_loop.monitors.contrast import Floats, Values
from ssd_loop.monitors.draws import Draws, counts


def distinct_at_m(counts: Sequence[int], m: int) -> float:
    """Expected number of different programs among m of the sum(counts) drawn ones.

    Rarefaction (Hurlbert 1971, equation 5): sum over kinds of 1 - C(N - N_c, m) / C(N, m). It does not
    move with the number of samples, so rounds with different sample counts compare.
    """
    total = sum(counts)
    return sum(1.0 - math.comb(total - c, m) / math.comb(total, m) for c in counts)


def measure(draws: Draws, m: int, *, right_only: bool = True) -> Values:
    """distinct@m of each problem, in programs; says nothing where fewer than m samples count.

    Args:
        draws: The samples.
        m: To how many samples richness is rarefied.
        right_only: Whether only right programs count, or all that parse.
    """
    counted = (draws.shape >= 0) & draws.passed if right_only else draws.shape >= 0
    kinds = counts(draws.shape, counted)
    total = kinds.sum(axis=-1)
    table = _table(draws.samples, m)
    return Values(table[total[..., None], kinds].sum(axis=-1), (total >= m).astype(float))


def _table(n: int, m: int) -> Floats:
    """What a kind seen c times of t adds to distinct@m, by [t, c]; 0 where t < m."""
    table = np.zeros((n + 1, n + 1))
    for t in range(m, n + 1):
        for c in range(t + 1):
            table[t, c] = 1.0 - math.comb(t - c, m) / math.comb(t, m)
    return table
