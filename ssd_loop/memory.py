"""What this process holds and does not need: handed back, or left out of searches for garbage."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Free what nothing refers to any more, on the device and in main memory, which the engine needs next."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim()


def settle() -> None:
    """Leave what is loaded by now, modules above all, out of later searches for garbage: 0.07 s, not 0.3."""
    gc.collect()
    gc.freeze()


def trim() -> None:
    """Have the C library return freed pages, of which glibc keeps gigabytes after a training."""
    if call := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        call(0)
