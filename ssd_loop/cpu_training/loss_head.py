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

from ssd_loop.cpu_training.precision import products_dtype

CHUNK_TOKENS = 256  # whose logits are in memory at once
ROWS_AT_ONCE = 16  # of them, whose law is computed while it is in the processor's cache


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
        dtype = products_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):  # it would round sums to its dtype
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
    """Gradient of each log-prob (N, H); log-prob, entropy and whether the target is likeliest, (N,) each."""
    tokens, words = hidden.shape[0], weight.shape[0]
    gradient = torch.empty_like(hidden)
    logprobs, entropies = hidden.new_empty(2, tokens, dtype=torch.float32)
    is_top1 = targets.new_empty(tokens, dtype=torch.bool)
    logits_of = hidden.new_empty(min(tokens, CHUNK_TOKENS), words)
    memory = hidden.new_empty(2, ROWS_AT_ONCE, words, dtype=torch.float32)
    for start in range(0, tokens, CHUNK_TOKENS):
        end = min(start + CHUNK_TOKENS, tokens)
        logits = logits_of[: end - start]
        torch.mm(hidden[start:end], weight.t(), out=logits)
        for first in range(start, end, ROWS_AT_ONCE):
            part = slice(first, min(first + ROWS_AT_ONCE, end))
            rows = logits[part.start - start : part.stop - start]
            logprobs[part], entropies[part], is_top1[part] = _turned(rows, targets[part], *memory)
        torch.mm(logits, weight, out=gradient[start:end])
    return gradient, logprobs, entropies, is_top1


def _turned(
    logits: torch.Tensor, targets: torch.Tensor, shifted: torch.Tensor, powers: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-prob of the targets, entropy, whether they are the likeliest; logits turn into their gradient.

    With z = logits - max: log p = z - log sum exp z, the entropy is log sum exp z - sum p z, and the gradient
    of log p is 1 - p at the target and -p elsewhere, rounded once.

    Args:
        logits: (n, V).
        targets: (n,) token ids.
        shifted: Memory for n rows or more, (_, V) in float32.
        powers: The same.
    """
    n, targets = len(logits), targets[:, None]
    largest, likeliest = logits.max(dim=1, keepdim=True)
    shifted = shifted[:n].copy_(logits).sub_(largest)
    powers = torch.exp(shifted, out=powers[:n])
    total = powers.sum(dim=1, keepdim=True)
    log_total = total.log()
    logprob = shifted.gather(1, targets) - log_total
    entropy = log_total - shifted.mul_(powers).sum(dim=1, keepdim=True) / total
    logits.copy_(powers.mul_(-1 / total)).scatter_(1, targets, -torch.expm1(logprob).to(logits.dtype))
    return logprob[:, 0], entropy[:, 0], (likeliest == targets)[:, 0]


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
