"""What the monitors see of the reference texts: the model's law at every position, stacked over texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssd_loop.monitors.contrast import Floats
from ssd_loop.records import TextScore

K = 20  # likeliest tokens kept at each position (collapse literature, section 3.3)


@dataclass(frozen=True)
class Positions:
    """The raw law at T positions of n texts, with any leading axes: (..., n, T) each.

    Attributes:
        present: Whether the position exists; texts differ in length.
        nll: Negative log-likelihood of the human's token, nats.
        entropy: Entropy of the law over the K likeliest tokens and one bucket for the rest, nats; a lower
            bound of the true one.
        tail: Mass outside of the K likeliest tokens.
        top: Mass of the likeliest token.
    """

    present: NDArray[np.bool_]
    nll: Floats
    entropy: Floats
    tail: Floats
    top: Floats

    def means(self, of: Floats, over: NDArray[np.bool_] | None = None) -> tuple[Floats, Floats]:
        """Per text the sum of `of` over positions (all, or those of a mask) and how many there are."""
        mask = self.present if over is None else self.present & over
        mask, of = np.broadcast_arrays(mask, of)
        return np.where(mask, of, 0.0).sum(axis=-1), mask.sum(axis=-1).astype(float)


def stack(scores: Sequence[TextScore]) -> Positions:
    """The scored texts as arrays, (n, T) with T of the longest text."""
    width = max(len(score.logprobs) for score in scores)
    shape = (len(scores), width)
    found = Positions(np.zeros(shape, bool), *(np.zeros(shape) for _ in range(4)))
    for row, score in enumerate(scores):
        length = len(score.logprobs)
        mass = np.exp(top_logprobs(score))  # (T, K)
        tail = np.clip(1.0 - mass.sum(axis=1), 0.0, 1.0)
        found.present[row, :length] = True
        found.nll[row, :length] = -np.array(score.logprobs)
        found.entropy[row, :length] = _entropy(mass).sum(axis=1) + _entropy(tail)
        found.tail[row, :length] = tail
        found.top[row, :length] = mass[:, 0]
    return found


def top_logprobs(score: TextScore) -> Floats:
    """(T, K) log-probs of the likeliest tokens."""
    return np.array(score.top_logprobs, dtype=np.float64).reshape(len(score.logprobs), -1)


def coarse_kl(current: Sequence[TextScore], other: Sequence[TextScore]) -> float:
    """Mean over positions of KL(current || other), nats per token, on a coarsened law: a lower bound.

    The law is coarsened to the tokens that both rounds list among their likeliest, and the rest; merging
    outcomes never raises a divergence (collapse literature, section 3.3).
    """
    values: list[float] = []
    for now, then in zip(current, other, strict=True):
        p, q = np.exp(top_logprobs(now)), np.exp(top_logprobs(then))
        p_ids, q_ids = (np.array(score.top_ids).reshape(p.shape) for score in (now, then))
        for row in range(len(p)):
            _, mine, theirs = np.intersect1d(p_ids[row], q_ids[row], return_indices=True)
            a, b = p[row, mine], q[row, theirs]
            values.append(_kl(np.append(a, max(1.0 - a.sum(), 0.0)), np.append(b, max(1.0 - b.sum(), 0.0))))
    return float(np.mean(values))


def _kl(p: Floats, q: Floats) -> float:
    if not (np.isfinite(p).all() and np.isfinite(q).all()):
        return float("nan")
    used = p > 1e-12
    return float(np.sum(p[used] * np.log(p[used] / np.maximum(q[used], 1e-12))))


def _entropy(mass: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(mass > 0.0, -mass * np.log(mass), np.where(mass == 0.0, 0.0, np.nan))
