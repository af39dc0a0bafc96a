"""A run's settings beside those of the paper (arXiv 2604.01193), and what they were run with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ssd_loop.config import RunConfig
from ssd_loop.filtering import expand


@dataclass(frozen=True)
class Row:
    """One setting of the run and of the paper."""

    setting: str
    here: str
    paper: str
    source: str
    is_same: bool


# Temperature, top-k (0 is none) and top-p of sampling, by the model's name: table 3 of the paper.
SAMPLING = {
    "Llama-3.1-8B-Instruct": (0.8, 20, 0.8),
    "Qwen3-4B-Instruct-2507": (1.6, 20, 0.8),
    "Qwen3-4B-Thinking-2507": (1.1, 20, 0.95),
    "Qwen3-30B-A3B-Instruct-2507": (1.6, 20, 0.8),
    "Qwen3-30B-A3B-Thinking-2507": (1.2, 20, 0.95),
    "gpt-oss-20b": (1.2, 0, 1.0),
}
USUAL = "Qwen3-4B-Instruct-2507"  # what other models are held against: the instruct models' recipe
PASSES = 2500 * 32 / 10_168  # over the data, instruct models (appendix C.1: steps, batch, prompts)
PASSES_THINKING = 300 * 32 / 10_168  # thinking models


def departures(config: RunConfig, rounds: int) -> list[Row]:
    """Where a run does what the paper does, and where not.

    Args:
        config: Its settings.
        rounds: How many rounds it has; the paper has one.
    """
    known = next((name for name in SAMPLING if name.lower() in config.model.name.lower()), None)
    temperature, top_k, top_p = SAMPLING[known or USUAL]
    table = "table 3" if known else f"table 3, {USUAL}"
    passes = PASSES_THINKING if known and "Thinking" in known else PASSES
    sample, train = config.sample, config.train
    filters = expand(config.filter.filters)
    return [
        _equal("rounds", rounds, 1, "one self-distillation"),
        _equal("sample.temperature", sample.temperature, temperature, table),
        _equal("sample.top_k", sample.top_k, top_k, table),
        _equal("sample.top_p", sample.top_p, top_p, table),
        _equal("sample.samples_per_prompt", sample.samples_per_prompt, 1, "appendix C.1"),
        _equal("sample.max_new_tokens", sample.max_new_tokens, 131_072, "table 3: 128K, prompt included"),
        Row(
            "prompts",
            f"{config.prompts.source}, limit {config.prompts.limit or 'unset'}",
            "rStar-Coder seed problems, about 10,168",
            "section 3.1, appendix C.1",
            "rstar-coder" in config.prompts.source.lower() and config.prompts.limit is None,
        ),
        Row(
            "filter.filters",
            ", ".join(filters),
            "empty, single-line stub",
            "section 3.1",
            filters == expand(["raw"]),
        ),
        Row("trained weights", f"LoRA, rank {train.lora_rank}", "all", "section 3.1", False),
        _equal("train.learning_rate", train.learning_rate, 5e-6, "section 3.1, for all weights"),
        _equal("train.final_lr_share", train.final_lr_share, 0.2, "section 3.1: 1e-6 / 5e-6"),
        _equal("train.warmup_share", train.warmup_share, 0.1, "appendix C.1: 250 of 2,500 steps"),
        _equal("train.weight_decay", train.weight_decay, 0.1, "section 3.1"),
        _equal("train.adam_beta2", train.adam_beta2, 0.95, "section 3.1"),
        _equal("train.batch_size", train.batch_size, 32, "section 3.1"),
        Row(
            "train.epochs",
            str(train.epochs),
            f"{passes:.2g} passes",
            "from steps, batch and prompts of appendix C.1",
            train.epochs == round(passes),
        ),
        _equal("train.human_share", train.human_share, 0.0, "section 3.1: raw samples alone"),
    ]


def _equal(setting: str, here: float, paper: float, source: str) -> Row:
    return Row(setting, f"{here:g}", f"{paper:g}", source, here == paper)


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Every setting by its dotted name, as text."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{key}.")
        else:
            found[key] = _text(value)
    return found


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "unset" if value is None or value == {} else str(value)


def surroundings(about: Mapping[str, Any]) -> dict[str, str]:
    """Base model, engine, commit, hardware and versions, as far as run.json names them."""
    base, hardware = about.get("base_model", {}), about.get("hardware", {})
    found = {
        "base model": base.get("title"),
        "precision": base.get("dtype"),
        "base content hash": base.get("content_hash"),
        "engine": about.get("engine"),
        "git commit": about.get("git_commit"),
        "processor": hardware.get("cpu"),
        "cores": hardware.get("cores"),
        "memory, GiB": hardware.get("memory_gib"),
        "GPUs": ", ".join(hardware.get("gpus", [])) or ("none" if hardware else None),
    }
    found |= about.get("versions", {})
    return {name: str(value) for name, value in found.items() if value is not None}
