"""What a LoRA adapter adds to which weight of the base: read from PEFT's files, refused where it is more.

Used wherever adapters become weights: merging, its gate, and the export of all rounds as one adapter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_loop import models
from ssd_loop.errors import BadArtifactError
from ssd_loop.training import ADAPTER_CONFIG, WEIGHTS

PREFIX = "base_model.model."  # what PEFT puts before the name of a module
LORA_TENSOR = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
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

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Term:
    """One adapter's place in the sum that makes a round's weights: base + sum of weight * delta."""

    folder: Path
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Factors:
    """One adapter's part in one weight: scale * B @ A."""

    tensors: Any  # an open safetensors file
    a: str
    b: str
    scale: float

    def read(self) -> tuple[Any, Any]:
        """A, (rank, in), and scale * B, (out, rank), in float32."""
        return self.tensors.get_tensor(self.a).float(), self.tensors.get_tensor(self.b).float() * self.scale


Parts = dict[str, list[Factors]]


@contextmanager
def opened(terms: Sequence[Term], shapes: Shapes | None) -> Iterator[Parts]:
    """The factors of every adapter, by the name of the base weight that they change.

    Args:
        terms: The adapters, first round first.
        shapes: Shape of every tensor of the base; None compares with no base.

    Raises:
        BadArtifactError: An adapter that is no plain LoRA, or does not fit the base.
    """
    from safetensors import safe_open

    parts: Parts = {}
    with ExitStack() as files:
        for term in terms:
            settings = plain_settings(term.folder)
            tensors = files.enter_context(safe_open(term.folder / WEIGHTS, framework="pt"))
            for weight, factors in _plan(term, settings, tensors, shapes).items():
                parts.setdefault(weight, []).append(factors)
        yield parts


def stacked(factors: Sequence[Factors]) -> tuple[Any, Any]:
    """The factors of all rounds joined by rank: A, (sum of ranks, in), and scaled B, (out, sum of ranks)."""
    import torch

    pairs = [factor.read() for factor in factors]
    return torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], dim=1)


def delta(factors: Sequence[Factors]) -> Any:
    """What all rounds together add to one weight, (out, in), in float32."""
    a, b = stacked(factors)
    return b @ a


def layout(tensors: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor in an open safetensors file, read from its header."""
    slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
    return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def plain_settings(folder: Path) -> dict[str, Any]:
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


def _plan(term: Term, settings: Mapping[str, Any], tensors: Any, shapes: Shapes | None) -> dict[str, Factors]:
    """Which base weight each pair of an adapter's tensors changes; a tensor without a place is refused."""

    def misfit(name: str, why: str) -> BadArtifactError:
        return BadArtifactError(
            f"{name} in {term.folder / WEIGHTS} {why}; use the base model that this adapter was trained on"
        )

    tensor_layout = layout(tensors)
    pairs: dict[str, dict[str, str]] = {}
    for name in tensor_layout:
        match = LORA_TENSOR.fullmatch(name)
        if match is None or match["module"].rpartition(".")[2] in HEADS:
            raise misfit(name, "is no adapter of a linear layer within the model")
        pairs.setdefault(match["module"], {})[match["factor"]] = name
    plan = {}
    for module, pair in pairs.items():
        weight = f"{module}.weight"
        a, b = (tensor_layout[pair[factor]][1] if factor in pair else () for factor in "AB")
        wanted = (*b[:1], *a[1:]) if shapes is None else shapes.get(weight)
        if not (a and b) or (*b[:1], *a[1:]) != wanted or a[:1] != b[1:]:
            name = next(iter(pair.values()))
            raise misfit(name, f"and its partner do not make up a change of the base's {weight}")
        scale = term.weight * _alpha(settings, module) / a[0]
        plan[weight] = Factors(tensors, pair["A"], pair["B"], scale)
    return plan


def _alpha(settings: Mapping[str, Any], module: str) -> float:
    """The numerator of the scale of one module's adapter; patterns match as PEFT matches them."""
    patterns: dict[str, float] = settings.get("alpha_pattern") or {}
    own = [alpha for key, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)]
    return own[0] if own else float(settings["lora_alpha"])
