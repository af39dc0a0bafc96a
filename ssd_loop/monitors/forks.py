"""Forks and locks (collapse): open places of human code that close, sure places that come loose.

A fork is a position with several good next tokens, a lock one with a single right token before a tail of
wrong ones (arXiv 2604.01193). One mean entropy mixes them up: sharpening closes forks, noise opens locks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssd_loop.monitors.contrast import Values
from ssd_loop.monitors.positions import Positions

FORK_SHARE = 0.2  # of positions, by entropy (arXiv 2506.01939: about a fifth carry the learning)
LOCK_SHARE = 0.5  # collapse literature, section 3.4
DEAD = 0.999  # mass of one token that leaves nothing to choose (collapse literature, section 3.3)

Masks = tuple[NDArray[np.bool_], NDArray[np.bool_]]


def labels(baseline: Positions, current: Positions) -> Masks:
    """Which positions are forks and which are locks, by the mean of both rounds' entropies.

    Scoring is deterministic, so labels from round 0 alone would pick the positions where round 0 happened
    to be high, and every later round would fall back from there: a loss that is none.
    """
    mean = np.nan_to_num((baseline.entropy + current.entropy) / 2.0)  # what is not finite, a guard finds
    present = np.broadcast_to(baseline.present, mean.shape)
    flat = np.where(present, mean, np.nan).reshape(*mean.shape[:-2], -1)
    bounds = np.nanquantile(flat, [LOCK_SHARE, 1.0 - FORK_SHARE], axis=-1)[..., None, None]
    return present & (mean >= bounds[1]), present & (mean <= bounds[0])


def entropy_at(positions: Positions, forks: NDArray[np.bool_]) -> Values:
    """Entropy at the forks, summed in each text, nats: its mean's loss over round 0's is 1 - phi.

    phi = sum over forks of H_r / sum over forks of H_0 (collapse literature, section 3.4).
    """
    total, _ = positions.means(positions.entropy, forks)
    return Values(total, np.ones_like(total))


def leakage_at(positions: Positions, locks: NDArray[np.bool_]) -> Values:
    """Mass off the human's token at the locks of each text, a probability; its rise is kappa."""
    return Values(*positions.means(1.0 - np.exp(-positions.nll), locks))


def dead(positions: Positions) -> Values:
    """Share of a text's positions where one token has all the mass."""
    return Values(*positions.means((positions.top > DEAD).astype(float)))


def tail_mass(positions: Positions) -> Values:
    """Mean mass outside of the K likeliest tokens in each text, a probability."""
    return Values(*positions.means(positions.tail))
