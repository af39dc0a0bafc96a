"""Recycling across rounds (collapse): the same programs again and again, though each round looks varied.

Diversity within a round stays high when the model goes in circles (arXiv 2602.13103), so programs are
compared with those of the rounds before.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.special import comb

from ssd_loop.monitors.contrast import Floats, Values
from ssd_loop.monitors.draws import Draws, Ints, counts, joined


def novelty(current: Draws, archive: Draws) -> Values:
    """Share of a problem's samples whose program none of the archive's samples has."""
    parses = current.shape >= 0
    both = joined(current, archive)
    was_there = np.zeros(both.passed.shape, dtype=bool)
    was_there[..., current.samples :] = True
    known = counts(both.shape, was_there) > 0
    new = parses & ~np.take_along_axis(known, np.maximum(current.shape, 0), axis=-1)
    return Values(new.sum(axis=-1).astype(float), parses.sum(axis=-1).astype(float))


def expected_novelty(baseline: Draws, archived: Ints) -> Values:
    """The same share if the model were still that of round 0, from round 0's samples alone.

    Chance that one sample's program is among none of `archived` others, all drawn without replacement from
    the n that parse: sum of N_c / n * C(n - N_c, a) / C(n - 1, a). Unbiased, so it does not move with n.
    Says nothing where fewer than `archived` + 1 samples parse.

    Args:
        baseline: Round 0's samples.
        archived: (..., n) how many samples of the archive parse.
    """
    kinds = counts(baseline.shape, baseline.shape >= 0)
    total = kinds.sum(axis=-1)
    sizes, which = np.unique(archived, return_inverse=True)
    table = _unseen(baseline.samples, tuple(sizes.tolist()))
    share = (kinds * table[which.reshape(archived.shape)[..., None], total[..., None], kinds]).sum(axis=-1)
    return Values(share, np.where(total > archived, total, 0).astype(float))


@cache
def _unseen(n: int, sizes: tuple[int, ...]) -> Floats:
    """C(t - c, a) / C(t - 1, a) by [index of a in `sizes`, t, c] for t, c up to n; 0 where t - 1 < a."""
    a = np.array(sizes)[:, None, None]
    t, c = np.arange(n + 1)[None, :, None], np.arange(n + 1)[None, None, :]
    whole = comb(np.maximum(t - 1, 0), a)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, comb(np.maximum(t - c, 0), a) / whole, 0.0)
