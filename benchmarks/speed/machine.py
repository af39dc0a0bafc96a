"""The machine: what it is, and the most that it gives."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GIB = 1 << 30


def described() -> dict[str, Any]:
    """The machine as a run records it, what its processor has for bfloat16, and the load."""
    from ssd_loop.doctor.checks import processor_flags  # sets how threads wait, as a run does
    from ssd_loop.provenance import hardware, versions

    flags = processor_flags(Path("/proc/cpuinfo"))
    found = hardware()
    kind = next((kind for kind in ("amx_bf16", "avx512_bf16", "avx512f") if kind in flags), "no AVX-512")
    return found | {
        "processor": f"{found['cpu']} ({kind})",
        "versions": versions(),
        "load": round(os.getloadavg()[0], 2),
    }


def product_gflops(rows: int, shapes: list[tuple[int, int]], repeats: int = 5) -> float:
    """Rate of bfloat16 matrix products at a model's shapes, all of them in turn, GFLOP/s.

    Args:
        rows: Tokens at once.
        shapes: (in, out) of each product.
        repeats: Of which the median is taken.
    """
    import torch

    pairs = [
        (torch.randn(rows, a, dtype=torch.bfloat16), torch.randn(b, a, dtype=torch.bfloat16))
        for a, b in shapes
    ]
    work = sum(2.0 * rows * a * b for a, b in shapes)

    def once() -> None:
        for left, right in pairs:
            torch.nn.functional.linear(left, right)

    once()
    return work / median_s(once, repeats, at_least_s=0.3) / 1e9


def copy_gib_s(repeats: int = 5) -> float:
    """Memory read and written by a copy of half a GiB, GiB/s."""
    import torch

    source, target = (torch.ones(GIB // 8) for _ in range(2))  # float32
    return 1.0 / median_s(lambda: target.copy_(source), repeats)


def median_s(work: Callable[[], object], repeats: int, at_least_s: float = 0.0) -> float:
    """Median seconds of one call; a repeat makes as many calls as last for `at_least_s`."""
    calls, found = 1, []
    while len(found) < repeats:
        began = time.perf_counter()
        for _ in range(calls):
            work()
        seconds = time.perf_counter() - began
        if seconds < at_least_s:
            calls *= 2
            continue
        found.append(seconds / calls)
    return statistics.median(found)


def linear_shapes(model_dir: Path) -> list[tuple[int, int]]:
    """(in, out) of the linear layers of one transformer block of a model, by its config."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False).get_text_config()
    hidden, inner, head = config.hidden_size, config.intermediate_size, head_size(config)
    heads, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    attention = [(hidden, heads), (hidden, keys), (hidden, keys), (heads, hidden)]
    return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]


def head_size(config: Any) -> int:
    """Numbers in one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
