"""A frozen linear layer with its LoRA adapter as one step.

PEFT's own layer makes the adapter's (N, out) product, scales it and adds it, three walks over memory, and as
many on the way back. A product that adds to what the frozen weights gave needs none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from ssd_loop.cpu_training.precision import products_dtype


class AdaptedLinear(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """x W^T + bias + scaling * x A^T B^T; x (N, in), W (out, in), A (rank, in), B (out, rank) give (N, out).

    Products round to the dtype of x and W; A and B may be finer, as may their gradients. W and bias get none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """The narrow product first, then both wide ones into the same memory."""
        ctx.finer = a.dtype
        a, b = a.to(x.dtype), (b * scaling).to(x.dtype)
        narrow = x @ a.t()
        ctx.save_for_backward(x, weight, a, b, narrow)
        ctx.scaling = scaling
        return linear(x, weight, bias).addmm_(narrow, b.t())

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of upstream g: d x = g W + (g B) A; d A = (g B)^T x; d B = g^T (x A^T), with scaling in B."""
        x, weight, a, b, narrow = ctx.saved_tensors
        inner = upstream @ b
        to_x = (upstream @ weight).addmm_(inner, a) if ctx.needs_input_grad[0] else None
        to_a = (x.t() @ inner).t().to(ctx.finer)  # this way round the wide side is the product's rows: faster
        to_b = (narrow.t() @ upstream).t().to(ctx.finer) * ctx.scaling
        return to_x, None, None, to_a, to_b, None


@contextmanager
def in_place_of_pefts() -> Iterator[None]:
    """Let PEFT's linear layers go through `AdaptedLinear` wherever that computes the same."""
    from peft.tuners.lora import Linear

    own = Linear.forward

    def forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        base, active = layer.base_layer, layer.active_adapters
        name = active[0] if len(active) == 1 else None
        is_plain = (
            type(base) is torch.nn.Linear
            and name in layer.lora_A
            and isinstance(layer.lora_dropout[name], torch.nn.Identity)
            and layer.lora_B[name].bias is None
            and not (layer.disable_adapters or layer.merged or layer.lora_variant or args or kwargs)
        )
        if not is_plain:
            plain: torch.Tensor = own(layer, x, *args, **kwargs)
            return plain
        dtype = products_dtype(base.weight)
        with torch.autocast(x.device.type, enabled=False):
            out = AdaptedLinear.apply(
                x.to(dtype).flatten(0, -2),
                base.weight.to(dtype),
                None if base.bias is None else base.bias.to(dtype),
                layer.lora_A[name].weight,
                layer.lora_B[name].weight,
                layer.scaling[name],
            )
        return out.unflatten(0, x.shape[:-1])

    Linear.forward = forward
    try:
        yield
    finally:
        Linear.forward = own
