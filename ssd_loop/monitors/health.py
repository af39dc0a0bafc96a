"""Health of the weights: how many directions the rounds' updates span, together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def effective_rank(updates: Iterable[tuple[Any, Any]]) -> float:
    """Mean effective rank of B @ A over matrices, weighted by their norm; falls if all rounds push one way.

    exp of the entropy of the singular values' shares (Roy and Vetterli 2007). The product is never made:
    with B = Q R and A^T = P S the singular values of B A are those of R S^T.

    Args:
        updates: For each changed matrix A (rank, in) and B (out, rank), float32 tensors of all rounds,
            joined along the rank.
    """
    import torch

    total, weights = 0.0, 0.0
    for a, b in updates:
        inner = torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T
        values = torch.linalg.svdvals(inner)
        norm = float(values.sum())
        if norm == 0.0:
            continue
        share = values[values > 0] / norm
        total += norm * math.exp(-float((share * share.log()).sum()))
        weights += norm
    return total / weights if weights else 0.0
