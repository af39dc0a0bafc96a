"""Top-k, then top-p: the part of the sampling law that both engines share."""

from __future__ import annotations

import torch

NUCLEUS_WIDTH = 1024  # candidates looked at first where only top-p cuts; nearly always enough


def truncate(logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """`logits` with every token outside the row's top-k and nucleus at minus infinity.

    The nucleus is the smallest set of likeliest tokens, among the top k, whose mass reaches top_p (Holtzman
    et al. 2020, section 3.1). Nothing sorts the whole vocabulary unless a nucleus is that wide: on a CPU
    the sort is dearer than the model.

    Args:
        logits: Float (B, V), after the temperature.
        top_k: Integer (B,); 0 is off.
        top_p: Float (B,); 1 is off.
    """
    vocabulary = logits.shape[1]
    limit = torch.where(top_k == 0, vocabulary, top_k).clamp(max=vocabulary)  # (B,)
    is_free = limit == vocabulary
    is_uncut = is_free & (top_p >= 1.0)
    if bool(is_uncut.all()):
        return logits
    width = int(torch.where(is_free, torch.where(is_uncut, 1, NUCLEUS_WIDTH), limit).max())
    width = min(width, vocabulary)
    mass_of_all = logits.logsumexp(dim=1)
    while True:
        values, ids = logits.topk(width, dim=1)  # (B, W), likeliest first
        outside = torch.arange(width, device=logits.device) >= limit[:, None]
        values = values.masked_fill(outside, -torch.inf)
        total = torch.where(is_free, mass_of_all, values.logsumexp(dim=1))
        mass = (values - total[:, None]).exp().cumsum(dim=1)
        if width == vocabulary or bool(((mass[:, -1] >= top_p) | ~is_free | is_uncut).all()):
            break
        width = vocabulary
    # A token stays while the mass before it has not reached top_p: the likeliest always stays.
    reached = torch.zeros_like(outside)
    reached[:, 1:] = (mass[:, :-1] >= top_p[:, None]) & (top_p < 1.0)[:, None]
    values = values.masked_fill(reached, -torch.inf)
    cut = torch.full_like(logits, -torch.inf).scatter_(1, ids, values)
    return torch.where(is_uncut[:, None], logits, cut)
