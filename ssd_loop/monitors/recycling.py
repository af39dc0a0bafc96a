"""Recycling across rounds (collapse): the same right programs again and again, though no round shows it.

Diversity within a round stays high when the model goes in circles (arXiv 2602.13103), so programs are
compared with those of the rounds before. Right answers only, and as many of them as round 0 can tell of: a
model that gets better repeats its programs more often because more of them are right, and that is no loss.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ssd_loop.monitors.contrast import Floats, Values
from ssd_loop.monitors.draws import Draws, Ints, counts, joined


def right_ones(draws: Draws) -> Ints:
    """(..., n) right answers whose program is known, problem by problem."""
    found: Ints = (draws.passed & (draws.shape >= 0)).sum(axis=-1)
    return found


def comparable(baseline: Draws, archive: Draws) -> Ints:
    """(..., n) how many archived right answers a right one is compared with: as many as both can tell of."""
    least: Ints = np.minimum(right_ones(archive), right_ones(baseline) - 1)
    return np.maximum(least, 0)


def novelty(current: Draws, archive: Draws, archived: Ints) -> Values:
    """Share of a problem's right answers whose program none of `archived` right ones of the archive has.

    Those are drawn from the archive's N right ones without replacement, and the mean over all such draws is
    taken: C(N - N_c, a) / C(N, a) for a program that is there N_c times. Says nothing where there is no right
    answer, or nothing to compare it with.

    Args:
        current: This round's samples.
        archive: Those of the rounds before.
        archived: (..., n) a, as `comparable` tells.
    """
    both = joined(current, archive)
    is_old = np.zeros(both.passed.shape, dtype=bool)
    is_old[..., current.samples :] = True
    right = both.passed & (both.shape >= 0)
    kinds = counts(both.shape, right & is_old)
    own = right[..., : current.samples]
    known = np.take_along_axis(kinds, np.maximum(current.shape, 0), axis=-1)
    chance = _unseen(archive.samples, archived, kinds.sum(axis=-1), known, own=0)
    told = np.where(archived > 0, own.sum(axis=-1), 0).astype(float)
    return Values(np.where(own, chance, 0.0).sum(axis=-1) * (archived > 0), told)


def expected_novelty(baseline: Draws, archived: Ints) -> Values:
    """The same share if right answers were still those of round 0, from round 0's samples alone.

    Chance that one right answer's program is among none of `archived` others, all drawn without replacement
    from the N right ones: sum of N_c / N * C(N - N_c, a) / C(N - 1, a). Unbiased, so it does not move with N.

    Args:
        baseline: Round 0's samples.
        archived: (..., n) a, as `comparable` tells.
    """
    kinds = counts(baseline.shape, baseline.passed & (baseline.shape >= 0))
    total = kinds.sum(axis=-1)
    share = (kinds * _unseen(baseline.samples, archived, total, kinds, own=1)).sum(axis=-1)
    told = (archived > 0) & (total > archived)
    return Values(np.where(told, share, 0.0), np.where(told, total, 0).astype(float))


def _unseen(n: int, archived: Ints, total: Ints, kinds: Ints, *, own: int) -> Floats:
    """(..., k) C(N - N_c, a) / C(N - own, a) for N_c in `kinds` (..., k), N in `total`, a in `archived`."""
    sizes, which = np.unique(archived, return_inverse=True)
    table = _table(n, tuple(sizes.tolist()), own)
    found: Floats = table[which.reshape(archived.shape)[..., None], total[..., None], kinds]
    return found


@cache
def _table(n: int, sizes: tuple[int, ...], own: int) -> Floats:
    """C(t - c, a) / C(t - own, a) by [index of a in `sizes`, t, c] for t, c up to n; 0 where t - own < a."""
    from scipy.special import comb

    a = np.array(sizes)[:, None, None]
    t, c = np.arange(n + 1)[None, :, None], np.arange(n + 1)[None, None, :]
    whole = comb(np.maximum(t - own, 0), a)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, comb(np.maximum(t - c, 0), a) / whole, 0.0)
