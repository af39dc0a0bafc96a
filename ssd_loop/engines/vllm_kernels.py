"""Fused norms for vLLM on a CPU, which has the kernels and leaves them to its compiler.

We run without that compiler (see `vllm_worker`), where a norm is a dozen passes over memory in float32. vLLM
takes other implementations of its operators by name; these call its own C++ kernels. They round once, after
the multiplication with the weight, as its GPU kernels do.
"""

from __future__ import annotations

import torch
import vllm.kernels  # noqa: F401  # loads the compiled operators
from vllm import ir

NAME = "ssd_loop"
# As `EngineArgs.ir_op_priority` takes it: ours where it can be used, else vLLM's.
PRIORITY = {"rms_norm": [NAME, "native"], "fused_add_rms_norm": [NAME, "native"]}
VECTOR = 32  # elements; the kernels take whole vectors only


def fits_norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    """Whether the kernel takes these arguments."""
    return (
        variance_size is None
        and weight is not None
        and weight.dtype == x.dtype
        and x.shape[-1] % VECTOR == 0
        and x.is_contiguous()
    )


def fits_fused_norm(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    """Whether the kernel takes these arguments."""
    same = x_residual.dtype == x.dtype and x_residual.is_contiguous()
    return same and fits_norm(x, weight, epsilon, variance_size)


@ir.ops.rms_norm.register_impl(NAME, supports_args=fits_norm, supported=True)  # type: ignore[untyped-decorator]
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> torch.Tensor:
    """Divide by the root mean square of the last axis, times the weight."""
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, weight, epsilon)
    return out


@ir.ops.fused_add_rms_norm.register_impl(  # type: ignore[untyped-decorator]
    NAME, supports_args=fits_fused_norm, supported=True, inplace=True
)
def fused_add_rms_norm(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of the sum, and the sum; both in place."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual
