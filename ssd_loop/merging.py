"""Base plus adapters becomes a model folder: the sum in float32, from the pristine base, rounded once.

A training at a small rate changes most bfloat16 weights by less than half a rounding step. Rounding to
nearest throws these changes away; stochastic rounding keeps them on average. Its noise is a hash of tensor
name and element, the same in every round, so a weight that did not change stays as it is, and the noise of
one round does not come on top of that of the last.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssd_loop import models
from ssd_loop.config import MergeConfig
from ssd_loop.errors import BadArtifactError
from ssd_loop.training import ADAPTER_CONFIG, WEIGHTS

STAGE_VERSION = 1  # raised when the same inputs would give other weights
Rounding = Literal["stochastic", "nearest"]

# base_model.model. is what PEFT puts before the name of a module.
LORA_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
HEADS = ("lm_head", "embed_tokens")
# What makes an adapter more than alpha / rank * B @ A on linear layers, with the value that does not.
PLAIN_LORA: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "layer_replication": None,
    "lora_bias": False,
    "modules_to_save": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_dora": False,
    "use_rslora": False,
}


@dataclass(frozen=True, slots=True)
class _Factors:
    """One adapter's part in one weight: scale * B @ A."""

    tensors: Any  # an open safetensors file
    a: str
    b: str
    scale: float


@dataclass(slots=True)
class _Sums:
    """Sums of squares and counts over the elements of all changed tensors."""

    tensors: int = 0
    elements: int = 0
    unchanged: int = 0
    base: float = 0.0
    delta: float = 0.0
    kept: float = 0.0
    error: float = 0.0
    nearest_error: float = 0.0

    def add(self, base: Any, delta: Any, exact: Any, written: Any) -> None:
        """Count one changed tensor; `base`, `delta` and `exact` are float32."""
        change = written.float() - base
        self.tensors += 1
        self.elements += base.numel()
        self.unchanged += base.numel() - int(change.count_nonzero())
        self.base += _dot(base, base)
        self.delta += _dot(delta, delta)
        self.kept += _dot(change, delta)
        error = written.float() - exact
        self.error += _dot(error, error)
        nearest_error = exact.to(written.dtype).float() - exact
        self.nearest_error += _dot(nearest_error, nearest_error)

    def metrics(self) -> dict[str, float | int]:
        """What the merge did, relative to the size of the update."""
        return {
            "tensors_changed": self.tensors,
            "elements_unchanged_share": _ratio(self.unchanged, self.elements),
            "delta_norm_share": math.sqrt(_ratio(self.delta, self.base)),
            "update_kept_share": _ratio(self.kept, self.delta),
            "rounding_error_share": math.sqrt(_ratio(self.error, self.delta)),
            "nearest_error_share": math.sqrt(_ratio(self.nearest_error, self.delta)),
        }


def merge(
    config: MergeConfig,
    *,
    base_dir: Path,
    adapters: Sequence[Path],
    out: Path,
    on_shard: Callable[[int, int], None] | None = None,
) -> dict[str, float | int]:
    """Metrics of the merge; `out` becomes a model folder like `base_dir`, with the adapters added.

    Memory stays at one shard and one tensor in float32.

    Args:
        config: How to round.
        base_dir: The pristine base; never an earlier merge.
        adapters: Every round's adapter folder, first round first.
        out: Existing folder for the model.
        on_shard: Called after each file of weights with (files done, files).

    Raises:
        BadArtifactError: An adapter that does not fit the base, is no plain LoRA, or gives values that are
            not finite.
    """
    from safetensors import safe_open

    shards = sorted(base_dir.glob("*.safetensors"))
    sums = _Sums()
    with ExitStack() as files:
        bases = [files.enter_context(safe_open(shard, framework="pt")) for shard in shards]
        shapes = {name: shape for base in bases for name, (_, shape) in _layout(base).items()}
        parts: dict[str, list[_Factors]] = {}
        for folder in adapters:
            settings = _plain_settings(folder)
            tensors = files.enter_context(safe_open(folder / WEIGHTS, framework="pt"))
            for weight, factors in _plan(folder, settings, tensors, shapes).items():
                parts.setdefault(weight, []).append(factors)
        for index, (shard, base) in enumerate(zip(shards, bases, strict=True), 1):
            _merge_shard(base, parts, config.rounding, out / shard.name, sums)
            if on_shard:
                on_shard(index, len(shards))
    for file in models.model_files(base_dir):
        if file.suffix != ".safetensors":
            shutil.copyfile(file, out / file.name)
    return sums.metrics()


def composition(
    *, title: str, content_hash: str, rounding: Rounding, adapters: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    """What defines a round's weights, as plain data for composition.json.

    Args:
        title: The base model's name.
        content_hash: `models.content_hash` of the base.
        rounding: How the sum is rounded.
        adapters: Folder relative to the composition's own, and SHA-256 of the adapter's weights.
    """
    return {
        "base": {"title": title, "content_hash": content_hash},
        "rounding": rounding,
        "adapters": [{"path": path, "sha256": sha256, "weight": 1.0} for path, sha256 in adapters],
    }


def rounded(values: Any, dtype: Any, name: str, rounding: Rounding) -> Any:
    """The float32 `values` in the dtype of the base; values beyond its range become its largest."""
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
    return values.to(dtype) if rounding == "nearest" else _rounded_stochastically(values, name)


def _rounded_stochastically(values: Any, name: str) -> Any:
    """The float32 `values` as bfloat16, away from zero with the probability of the part cut off.

    bfloat16 is the upper half of float32. Adding uniform noise below that half and cutting carries over
    with exactly that probability, for both signs and across powers of two.
    """
    import numpy as np
    import torch

    bits = values.contiguous().numpy().view(np.uint32).reshape(-1)
    upper = ((bits + noise(name, bits.size)) >> np.uint32(16)).astype(np.uint16)
    return torch.from_numpy(upper.view(np.int16)).view(torch.bfloat16).reshape(values.shape)


def noise(name: str, count: int) -> Any:
    """`count` 16-bit numbers that depend on the tensor's name and the element alone.

    SplitMix64 (Steele, Lea, Flood 2014) with the hash of the name as its start; each 64-bit output serves
    four elements.
    """
    import numpy as np

    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    word = np.arange(1, -(-count // 4) + 1, dtype=np.uint64)
    word *= np.uint64(0x9E3779B97F4A7C15)
    word += np.uint64(start)
    word ^= word >> np.uint64(30)
    word *= np.uint64(0xBF58476D1CE4E5B9)
    word ^= word >> np.uint64(27)
    word *= np.uint64(0x94D049BB133111EB)
    word ^= word >> np.uint64(31)
    return word.astype("<u8", copy=False).view("<u2")[:count]


def _merge_shard(
    base: Any, parts: Mapping[str, Sequence[_Factors]], rounding: Rounding, out: Path, sums: _Sums
) -> None:
    """Write one file of weights, then open it again and compare it with what it should be."""
    from safetensors.torch import save_file

    merged = {}
    for name in _layout(base):
        tensor = base.get_tensor(name)
        if name in parts:
            pristine, delta = tensor.float(), _delta(parts[name])
            exact = pristine + delta
            merged[name] = rounded(exact, tensor.dtype, name, rounding)
            sums.add(pristine, delta, exact, merged[name])
        else:
            merged[name] = tensor
    save_file(merged, out, metadata=base.metadata())
    del merged
    _check(base, parts, rounding, out)


def _check(base: Any, parts: Mapping[str, Sequence[_Factors]], rounding: Rounding, file: Path) -> None:
    """Refuse a written file whose layout is not the base's or whose last changed tensor is not the sum."""
    import torch
    from safetensors import safe_open

    with safe_open(file, framework="pt") as written:
        if _layout(written) != _layout(base):
            raise BadArtifactError(f"{file} was not written as the base is laid out; check the disk")
        for name in [name for name in _layout(base) if name in parts][-1:]:
            tensor = base.get_tensor(name)
            wanted = rounded(tensor.float() + _delta(parts[name]), tensor.dtype, name, rounding)
            if not torch.equal(written.get_tensor(name), wanted):
                raise BadArtifactError(f"{name} in {file} reads back other than written; check the disk")


def _layout(tensors: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor in an open file, read from its header."""
    slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
    return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def _delta(factors: Sequence[_Factors]) -> Any:
    """What all rounds together add to one weight, in float32: one product of the factors joined by rank."""
    import torch

    a = torch.cat([factor.tensors.get_tensor(factor.a).float() for factor in factors])
    b = [factor.tensors.get_tensor(factor.b).float() * factor.scale for factor in factors]
    return torch.cat(b, dim=1) @ a


def _plain_settings(folder: Path) -> dict[str, Any]:
    """An adapter's settings, of which alpha is the only one that matters to a merge."""
    for file in (WEIGHTS, ADAPTER_CONFIG):
        if not (folder / file).is_file():
            raise BadArtifactError(f"{folder} has no {file}; restore it, or train that round again")
    settings = models.read_json(folder / ADAPTER_CONFIG)
    for key, plain in PLAIN_LORA.items():
        if (settings.get(key) or plain) != plain:
            raise BadArtifactError(
                f"{folder / ADAPTER_CONFIG} has {key} {json.dumps(settings[key])}, which cannot be merged "
                f"here; train with {key} {json.dumps(plain)}"
            )
    return settings


def _plan(
    folder: Path,
    settings: Mapping[str, Any],
    tensors: Any,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, _Factors]:
    """Which base weight each pair of an adapter's tensors changes; a tensor without a place is refused."""

    def misfit(name: str, why: str) -> BadArtifactError:
        return BadArtifactError(
            f"{name} in {folder / WEIGHTS} {why}; use the base model that this adapter was trained on"
        )

    layout = _layout(tensors)
    pairs: dict[str, dict[str, str]] = {}
    for name in layout:
        match = LORA_TENSOR.fullmatch(name)
        if match is None or match["module"].rpartition(".")[2] in HEADS:
            raise misfit(name, "is no adapter of a linear layer within the model")
        pairs.setdefault(match["module"], {})[match["factor"]] = name
    plan = {}
    for module, pair in pairs.items():
        weight = f"{module}.weight"
        a, b = (layout[pair[factor]][1] if factor in pair else () for factor in "AB")
        if (*b[:1], *a[1:]) != shapes.get(weight) or a[:1] != b[1:]:
            name = next(iter(pair.values()))
            raise misfit(name, f"and its partner do not make up a change of the base's {weight}")
        plan[weight] = _Factors(tensors, pair["A"], pair["B"], _alpha(settings, module) / a[0])
    return plan


def _alpha(settings: Mapping[str, Any], module: str) -> float:
    """The numerator of the scale of one module's adapter; patterns match as PEFT matches them."""
    patterns: dict[str, float] = settings.get("alpha_pattern") or {}
    own = [alpha for key, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)]
    return own[0] if own else float(settings["lora_alpha"])


def _dot(left: Any, right: Any) -> float:
    import torch

    return float(torch.dot(left.reshape(-1), right.reshape(-1)))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
