"""Causal attention for training on a CPU: plain matrix products, block by block of the queries.

The fused kernel of PyTorch is slow on the way back, and transformers' plain path walks over whole (N, N)
scores in float32 and copies keys and values for every query head. Here query heads that share keys are one
product, blocks leave out most of what lies in the future, and probabilities stay in the products' dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from ssd_loop.cpu_training.precision import products_dtype

NAME = "sdpa"  # as transformers calls PyTorch's kernel
BLOCK_TOKENS = 128  # queries at once
KEPT_TOKENS = 512  # rows up to which probabilities wait for the way back; longer ones are computed again


class CausalAttention(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """softmax(scaling * q k^T, causal) v; q (B, H, N, D), k (B, G, N, D), v (B, G, N, E) give (B, N, H, E).

    Head h of the queries meets head h * G // H of the keys. Products and softmax round to the dtype of q.
    """

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
        """Each block of queries against all keys up to its end."""
        batch, heads, tokens, _ = q.shape
        groups = k.shape[1]
        q = (q * scaling).unflatten(1, (groups, -1))
        k, v = k.flatten(0, 1), v.flatten(0, 1)
        out = q.new_empty(batch, tokens, heads, v.shape[-1])
        kept = []
        for start, end in _blocks(tokens):
            probs = _probs(q, k, start, end)
            mixed = torch.bmm(probs, v[:, :end])
            out[:, start:end] = mixed.view(batch, heads, end - start, -1).transpose(1, 2)
            if tokens <= KEPT_TOKENS:
                kept.append(probs)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scaling = scaling
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        """Of upstream g: d v = p^T g; d s = p (d p - sum p d p), of which q and k get their products."""
        q, k, v, *kept = ctx.saved_tensors
        batch, groups, _, tokens, _ = q.shape
        to_q = torch.empty_like(q)
        to_k, to_v = (torch.zeros_like(each, dtype=torch.float32) for each in (k, v))  # sums over the blocks
        for at, (start, end) in enumerate(_blocks(tokens)):
            probs = kept[at] if kept else _probs(q, k, start, end)
            slope = upstream[:, start:end].transpose(1, 2).reshape(len(k), -1, v.shape[-1])
            to_v[:, :end] += torch.bmm(probs.transpose(1, 2), slope)
            slope = torch.bmm(slope, v[:, :end].transpose(1, 2))
            slope = torch._softmax_backward_data(slope, probs, -1, probs.dtype)
            to_q[..., start:end, :] = torch.bmm(slope, k[:, :end]).view_as(to_q[..., start:end, :])
            to_k[:, :end] += torch.bmm(slope.transpose(1, 2), _stacked(q, start, end))
        to_q = (to_q * ctx.scaling).flatten(1, 2)
        to_k, to_v = (each.unflatten(0, (batch, groups)).to(q.dtype) for each in (to_k, to_v))
        return to_q, to_k, to_v, None


def _blocks(tokens: int) -> list[tuple[int, int]]:
    """Start and end of each block of queries, as even as can be."""
    count = -(-tokens // BLOCK_TOKENS)
    return list(pairwise(tokens * at // count for at in range(count + 1)))


def _stacked(q: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """A block of q (B, G, R, N, D) with all heads that share keys as one matrix, (B * G, R * block, D)."""
    return q[..., start:end, :].reshape(q.shape[0] * q.shape[1], -1, q.shape[-1])


def _probs(q: torch.Tensor, k: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """How a block of queries attends to all keys up to its end, (B * G, R * block, end)."""
    scores = torch.bmm(_stacked(q, start, end), k[:, :end].transpose(1, 2))
    future = scores.new_full((end - start, end - start), -torch.inf).triu_(1)
    scores.unflatten(1, (-1, end - start))[..., start:] += future
    return torch.softmax(scores, dim=-1)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Called as transformers calls `sdpa_attention_forward`, to which everything but plain causal goes."""
    is_causal = others.get("is_causal")
    is_plain = (
        attention_mask is None
        and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
        and query.shape[2] == key.shape[2]
        and not others.get("dropout")
        and others.get("position_bias") is None
        and others.get("cache") is None
    )
    if not is_plain:
        mixed, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
        return mixed, None
    dtype = products_dtype(value)
    with torch.autocast(query.device.type, enabled=False):
        mixed = CausalAttention.apply(
            query.to(dtype), key.to(dtype), value.to(dtype), scaling or query.shape[-1] ** -0.5
        )
    return mixed, None


def _mask(
    *args: Any,
    mask_function: Any = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    **others: Any,
) -> torch.Tensor | None:
    """`sdpa_mask`, but none for padding at the end, which no token before it can see anyway."""
    if mask_function is causal_mask_function and attention_mask is not None:
        is_real = attention_mask.bool()
        if bool((is_real[:, 1:] <= is_real[:, :-1]).all()):
            attention_mask = None
    mask: torch.Tensor | None = sdpa_mask(
        *args, mask_function=mask_function, attention_mask=attention_mask, **others
    )
    return mask


@contextmanager
def in_place_of_pytorchs() -> Iterator[None]:
    """Let models attend this way wherever transformers would have them use PyTorch's kernel.

    Under the same name, because some models do other things for names that they do not know.
    """
    own = AttentionInterface()[NAME], AttentionMaskInterface()[NAME]
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
    try:
        yield
    finally:
        AttentionInterface.register(NAME, own[0])
        AttentionMaskInterface.register(NAME, own[1])
