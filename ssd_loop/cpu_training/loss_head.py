"""The loss of an output layer that is not trained, with its gradient found on the way forward.

TRL's own function computes the logits twice, once for the loss and once for the gradient, and walks over them
many times on a CPU. Under LoRA the output layer is frozen: nothing but the gradient of the hidden states is
asked of it, and that can be had while the logits are at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.function import once_differentiable

CHUNK_TOKENS = 128  # whose logits are in memory at once


class FrozenHead(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """Log-prob of each target, entropy of its law (nats) and whether it is the likeliest token; (N,) each.

    d log p(t | h) / d h = W[t] - sum over v of p(v | h) W[v]; hidden states h (N, H), weights W (V, H).
    Products are in the dtype of autocast, everything between them is in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Chunk by chunk in the same memory, so that (N, V) is never whole and no page is fetched anew."""
        device = hidden.device.type
        is_mixed = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_mixed else hidden.dtype
        with torch.autocast(device, enabled=False):  # it would round sums to its dtype
            found = _walk(hidden.to(dtype), weight.to(dtype), targets)
        gradient, logprobs, entropies, is_top1 = found
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropies, is_top1)
        return logprobs, entropies, is_top1

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None, None]:
        """Scale each token's gradient."""
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[:, None]).to(gradient.dtype), None, None


def _walk(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradient of each log-prob (N, H), log-prob, entropy and whether the target is the likeliest, (N,) each.

    With z = logits - max: log p = z - log sum exp z, and the entropy is log sum exp z - sum p z.
    """
    tokens, words = hidden.shape[0], weight.shape[0]
    gradient = torch.empty_like(hidden)
    logprobs, entropies = hidden.new_empty(2, tokens, dtype=torch.float32)
    is_top1 = targets.new_empty(tokens, dtype=torch.bool)
    logits_of = hidden.new_empty(min(tokens, CHUNK_TOKENS), words)
    shifted_of, powers_of = logits_of.new_empty(2, *logits_of.shape, dtype=torch.float32)
    for start in range(0, tokens, CHUNK_TOKENS):
        part = slice(start, start + CHUNK_TOKENS)
        target = targets[part, None]
        logits, shifted, powers = (memory[: len(target)] for memory in (logits_of, shifted_of, powers_of))
        torch.mm(hidden[part], weight.t(), out=logits)
        largest, likeliest = logits.max(dim=1, keepdim=True)
        torch.sub(logits, largest.float(), out=shifted)
        total = torch.exp(shifted, out=powers).sum(dim=1, keepdim=True)
        logprob = shifted.gather(1, target) - total.log()
        logprobs[part] = logprob[:, 0]
        entropies[part] = total.log()[:, 0] - torch.linalg.vecdot(powers, shifted) / total[:, 0]
        is_top1[part] = (likeliest == target)[:, 0]
        slope = torch.mul(powers, -1 / total, out=logits)
        slope.scatter_(1, target, -torch.expm1(logprob).to(slope.dtype))  # 1 - p, rounded once
        torch.mm(slope, weight, out=gradient[part])
    return gradient, logprobs, entropies, is_top1


@contextmanager
def in_place_of_trls() -> Iterator[None]:
    """Let TRL's loss go through `FrozenHead` wherever that computes the same."""
    from trl.trainer import utils

    own = utils._ChunkedLogProbFunction

    class Chosen:
        """Called as TRL calls its own."""

        @staticmethod
        def apply(
            hidden: torch.Tensor,
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            targets: torch.Tensor,
            temperature: float,
            chunk_size: int,
            softcap: float | None,
            logit_scale: float,
            outputs: tuple[str, ...],
        ) -> tuple[torch.Tensor | None, ...]:
            if bias is None and softcap is None and temperature == logit_scale == 1.0:
                logprobs, entropy, is_top1 = FrozenHead.apply(hidden, weight.detach(), targets)
                return logprobs, entropy, None, None, is_top1
            found: tuple[torch.Tensor | None, ...] = own.apply(
                hidden, weight, bias, targets, temperature, chunk_size, softcap, logit_scale, outputs
            )
            return found

    utils._ChunkedLogProbFunction = Chosen
    try:
        yield
    finally:
        utils._ChunkedLogProbFunction = own
