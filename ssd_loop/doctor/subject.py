"""What is examined: a model that resolves, its tasks, its sizes; and what a finding is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ssd_loop import evaluation, finals, training
from ssd_loop.config import RunConfig
from ssd_loop.errors import ConfigError, SsdLoopError
from ssd_loop.lora import layout
from ssd_loop.problems import Problem
from ssd_loop.prompts import Renderer, load_prompts, longest_variants, message
from ssd_loop.workbench import Workbench

Verdict = Literal["pass", "warn", "fail"]
Messages = list[dict[str, str]]
GIB = 2**30
# More prompts than this are not all rendered: the longest texts are, which hold the longest prompt but for
# texts of unusually many tokens a character.
MANY_PROMPTS, LONGEST_TEXTS = 2000, 200
ITEM_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2}  # others: 1


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: Name of the check.
        verdict: fail: a run with these settings would stop or be worthless; warn: it would be worse than
            it need be.
        detail: What was seen, in one line.
        remedy: What to do about a warn or a fail; empty where the detail says so itself.
    """

    check: str
    verdict: Verdict
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Longest:
    """The longest prompt of a panel, and how long its answers may be, tokens."""

    panel: str
    prompt_id: str
    prompt: int
    new: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a model takes.

    Attributes:
        weights: Bytes of all tensors.
        item: Bytes of one number.
        largest: Elements of the largest tensor.
        adapter: Parameters of one adapter.
        features: Inputs plus outputs of all linear layers.
        layers: Transformer layers.
        hidden: Width of the model.
        kv_token: Bytes that one token takes in the KV cache.
    """

    weights: int
    item: int
    largest: int
    adapter: int
    features: int
    layers: int
    hidden: int
    kv_token: int


@dataclass
class Tasks:
    """What the model is asked: loaded once, also where that fails, because a Hub is asked for long."""

    config: RunConfig

    @cached_property
    def _loaded(self) -> dict[str, tuple[Problem, ...]] | SsdLoopError:
        evaluate = self.config.evaluate
        try:
            found = {"train": load_prompts(self.config.prompts)}
            for name in evaluate.panels:
                found[name] = evaluation.panel_problems(evaluate, name)
        except SsdLoopError as error:
            return error
        return found

    @property
    def problems(self) -> dict[str, tuple[Problem, ...]]:
        """The training prompts, under `train`, and the problems of every panel; raises what loading did."""
        if isinstance(self._loaded, SsdLoopError):
            raise self._loaded
        return self._loaded


@dataclass
class Subject:
    """A model that resolves, its tokenizer and its architecture; looked at once, when first needed."""

    config: RunConfig
    bench: Workbench
    tasks: Tasks

    @property
    def path(self) -> Path:
        """The folder that round 0 runs from."""
        return self.bench.base.path

    @cached_property
    def outline(self) -> Any:
        """The architecture without memory for weights, as transformers builds it."""
        from accelerate import init_empty_weights
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(self.path, trust_remote_code=False)
        with init_empty_weights():
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)

    @cached_property
    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Stored dtype and shape of every tensor."""
        from safetensors import safe_open

        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        for file in sorted(self.path.glob("*.safetensors")):
            with safe_open(file, framework="numpy") as tensors:
                found |= layout(tensors)
        return found

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of every linear layer but the output head."""
        import torch

        head = self.outline.get_output_embeddings()
        return {
            name: (module.in_features, module.out_features)
            for name, module in self.outline.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        }

    @cached_property
    def adapted(self) -> dict[str, tuple[int, int]]:
        """Those of them that get an adapter; raises ConfigError for layers that the model lacks."""
        return adapted(self.linears, training.target_modules(self.config.train, self.outline))

    @cached_property
    def longest(self) -> list[Longest]:
        """The longest prompt of the training prompts, first, and of every panel that will be asked."""
        evaluate, asked = self.config.evaluate, dict(self.tasks.problems)
        if self.config.has_baselines:
            asked[finals.PANEL] = evaluation.panel_problems(evaluate, finals.PANEL)
        if self.config.monitor.remedy == "variants":
            asked["train"] = longest_variants(asked["train"])
        new = self.config.sample.max_new_tokens
        return [
            longest(name, problems, self.bench.renderer, new if name == "train" else evaluate.max_new_tokens)
            for name, problems in asked.items()
        ]

    @property
    def known_lengths(self) -> list[Longest]:
        """The same; empty where the prompts cannot be had, which is another check's finding."""
        from jinja2 import TemplateError

        try:
            return self.longest
        except (SsdLoopError, TemplateError):
            return []

    @cached_property
    def sizes(self) -> Sizes:
        """What the model takes, from its files and its architecture."""
        config = self.text_config
        item = 4 if self.bench.base.dtype == "float32" else 2
        heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 0)
        return Sizes(
            weights=stored_bytes(self.tensors),
            item=item,
            largest=max(math.prod(shape) for _, shape in self.tensors.values()),
            adapter=self._adapter,
            features=sum(inputs + outputs for inputs, outputs in self.linears.values()),
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            kv_token=2 * config.num_hidden_layers * heads * (self.head_size or 0) * item,  # keys and values
        )

    @property
    def _adapter(self) -> int:
        """Parameters of one adapter; 0 where there cannot be one, which is another check's finding."""
        try:
            return adapter_parameters(self.adapted, self.config.train.lora_rank)
        except ConfigError:
            return 0

    @property
    def text_config(self) -> Any:
        """The architecture's own settings."""
        return self.outline.config.get_text_config()

    @property
    def head_size(self) -> int | None:
        """Width of one attention head; None for a model without attention."""
        heads = getattr(self.text_config, "num_attention_heads", None)
        size: int | None = getattr(self.text_config, "head_dim", None)
        return size or (self.text_config.hidden_size // heads if heads else None)


def one_line(error: Exception) -> str:
    """The error as one line."""
    return " ".join(str(error).split())


def longest(panel: str, problems: Sequence[Problem], renderer: Renderer, new: int) -> Longest:
    """The longest prompt of a panel; of many, the longest of those with the longest texts."""
    some = problems
    if len(problems) > MANY_PROMPTS:
        some = sorted(problems, key=lambda problem: len(message(problem)))[-LONGEST_TEXTS:]
    lengths = [len(renderer.prompt_ids(problem)) for problem in some]
    most = max(lengths)
    return Longest(panel, some[lengths.index(most)].id, most, new)


def adapted(
    linears: Mapping[str, tuple[int, int]], targets: str | Sequence[str]
) -> dict[str, tuple[int, int]]:
    """The linear layers that get an adapter, chosen by the ends of their names as PEFT chooses."""
    if isinstance(targets, str):
        return dict(linears)
    ends = tuple(f".{target}" for target in targets)
    return {name: sizes for name, sizes in linears.items() if f".{name}".endswith(ends)}


def adapter_parameters(layers: Mapping[str, tuple[int, int]], rank: int) -> int:
    """Parameters of one adapter: A is (rank, inputs) and B is (outputs, rank)."""
    return sum(rank * (inputs + outputs) for inputs, outputs in layers.values())


def stored_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
    """Bytes of all tensors as they are stored."""
    return sum(ITEM_BYTES.get(dtype, 1) * math.prod(shape) for dtype, shape in tensors.values())


def gib(size: int) -> str:
    """A size in GiB, small ones in MiB."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.1f} MiB"


def joined(values: Iterable[object]) -> str:
    """The values with commas between them."""
    return ", ".join(map(str, values))
