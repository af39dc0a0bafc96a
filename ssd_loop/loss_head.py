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
        """Chunk by chunk, so that (N, V) is never whole in memory."""
        is_mixed = torch.is_autocast_enabled(hidden.device.type)
        dtype = torch.get_autocast_dtype(hidden.device.type) if is_mixed else hidden.dtype
        weight = weight.to(dtype)
        gradient = torch.empty_like(hidden)
        logprobs, entropies, likeliest = [], [], []
        for start in range(0, hidden.shape[0], CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            target = targets[part, None]
            logs = torch.log_softmax(hidden[part].to(dtype) @ weight.t(), dim=-1, dtype=torch.float32)
            logprobs.append(logs.gather(1, target)[:, 0])
            likeliest.append(logs.argmax(dim=-1) == target[:, 0])
            probs = logs.exp()
            entropies.append(-torch.linalg.vecdot(probs, logs))
            slope = probs.neg_().scatter_add_(1, target, torch.ones_like(target, dtype=torch.float32))
            gradient[part] = slope.to(dtype) @ weight
        ctx.save_for_backward(gradient)
        entropy, is_top1 = torch.cat(entropies), torch.cat(likeliest)
        ctx.mark_non_differentiable(entropy, is_top1)
        return torch.cat(logprobs), entropy, is_top1

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None, None]:
        """Scale each token's gradient."""
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[:, None]).to(gradient.dtype), None, None


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
