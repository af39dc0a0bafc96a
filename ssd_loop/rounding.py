"""From float32 to the dtype of the base, by nearest or stochastically with noise that never changes.

A training at a small rate changes most bfloat16 weights by less than half a rounding step. Rounding to
nearest throws these changes away; stochastic rounding keeps them on average. Its noise is a hash of tensor
name and element, the same in every round, so a weight that did not change stays as it is, and the noise of
one round does not come on top of that of the last.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Literal

from ssd_loop.errors import BadArtifactError

Rounding = Literal["stochastic", "nearest"]
WORD = 4  # elements that one 64-bit number serves


def rounded(values: Any, dtype: Any, name: str, rounding: Rounding, start: int = 0) -> Any:
    """The float32 `values` in the dtype of the base; values beyond its range become its largest.

    Args:
        values: A tensor, or whole rows of one.
        dtype: torch.bfloat16 or torch.float32.
        name: The tensor's name, which decides the noise.
        rounding: How to round.
        start: Number of the tensor's elements before `values`.

    Raises:
        BadArtifactError: A value that is not finite, or a base in another dtype.
    """
    import torch

    low, high = (float(bound) for bound in torch.aminmax(values))  # both NaN if one value is
    if not (math.isfinite(low) and math.isfinite(high)):
        raise BadArtifactError(
            f"merging gives values in {name} that are not finite; the training diverged, train that round "
            "again with a lower train.learning_rate"
        )
    if dtype == torch.float32:
        return values
    if dtype != torch.bfloat16:
        raise BadArtifactError(
            f"{name} of the base is stored as {dtype}, and only bfloat16 and float32 can be merged into; "
            "set model.dtype to one of them"
        )
    largest = torch.finfo(dtype).max
    if max(-low, high) > largest:
        values = values.clamp(-largest, largest)
    return values.to(dtype) if rounding == "nearest" else _rounded_stochastically(values, name, start)


def _rounded_stochastically(values: Any, name: str, start: int) -> Any:
    """The float32 `values` as bfloat16, away from zero with the probability of the part cut off.

    bfloat16 is the upper half of float32. Adding uniform noise below that half and cutting carries over
    with exactly that probability, for both signs and across powers of two.
    """
    import numpy as np
    import torch

    bits = values.contiguous().numpy().view(np.uint32).reshape(-1)
    upper = ((bits + noise(name, bits.size, start)) >> np.uint32(16)).astype(np.uint16)
    return torch.from_numpy(upper.view(np.int16)).view(torch.bfloat16).reshape(values.shape)


def noise(name: str, count: int, start: int = 0) -> Any:
    """`count` 16-bit numbers that depend on the tensor's name and the element alone.

    SplitMix64 (Steele, Lea, Flood 2014) with the hash of the name as its start; each 64-bit output serves
    four elements. It can begin anywhere, so a tensor is rounded in parts as it would be whole.

    Args:
        name: The tensor's name.
        count: How many.
        start: The first one's element.
    """
    import numpy as np

    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    first, skipped = divmod(start, WORD)
    words = -(-(skipped + count) // WORD)
    word = np.arange(first + 1, first + words + 1, dtype=np.uint64)
    word *= np.uint64(0x9E3779B97F4A7C15)
    word += np.uint64(seed)
    word ^= word >> np.uint64(30)
    word *= np.uint64(0xBF58476D1CE4E5B9)
    word ^= word >> np.uint64(27)
    word *= np.uint64(0x94D049BB133111EB)
    word ^= word >> np.uint64(31)
    return word.astype("<u8", copy=False).view("<u2")[skipped : skipped + count]
