"""LoRA fine-tuning on sampled token ids: TRL's SFTTrainer and PEFT behind one function.

Token-exact: the ids that were sampled are the ids trained on. Nothing is decoded, cut or appended, so a
finished sample teaches its stop token and a truncated one teaches none. The same rows, settings and seed
give the same bytes in any process, also in one that goes on where a killed one left off.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssd_loop import cpu_training, durable, models, training_state
from ssd_loop.config import TrainConfig
from ssd_loop.durable import write_json
from ssd_loop.errors import ConfigError, StageFailedError
from ssd_loop.memory import give_back
from ssd_loop.monitors import cliff
from ssd_loop.records import quantiles
from ssd_loop.store import SHARDS
from ssd_loop.training_rows import Counted, TrainingRow, on_disk, reading_order

if TYPE_CHECKING:
    from datasets import Dataset

STAGE_VERSION = 3  # raised when the same settings would give another adapter
WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PROBE = "probe.json"

OnStep = Callable[[int, int, float], None]


@dataclass(frozen=True, slots=True)
class _Step:
    loss: float
    grad_norm: float
    entropy: float


def train(
    config: TrainConfig,
    *,
    model_dir: Path,
    rows: Counted[TrainingRow],
    seed: int,
    device: str,
    out: Path,
    on_step: OnStep | None = None,
    probe: Sequence[Sequence[int]] = (),
    ends_on_cliff: bool = True,
    save_every: int = training_state.EVERY_STEPS,
) -> dict[str, float | int]:
    """Metrics of the training; the adapter goes to `out` as float32 in PEFT's own format.

    With a probe, ``probe.json`` has the rise of its NLL. Where that is a cliff and `ends_on_cliff` is set,
    training ends there: no adapter is written, and the metrics have `cliff_step`. What it takes to go on
    after a kill is kept in `out` until the end.

    Args:
        config: How to train.
        model_dir: The weights that get the adapter, in the dtype that the engine samples with.
        rows: What to train on.
        seed: Decides LoRA's initial weights and the order of the rows.
        device: cpu or cuda.
        out: Existing folder for the adapter.
        on_step: Called after each optimiser step with (step, steps, loss in nats per token).
        probe: Token ids of fixed human texts, whose NLL is watched every `probe_every` steps.
        ends_on_cliff: Whether a cliff ends the training.
        save_every: Steps between saved states; 0 = none. The adapter is the same.

    Raises:
        StageFailedError: No rows, a loss that is not finite, or too little GPU memory.
        ConfigError: The model has no such target modules.
    """
    if not rows:
        raise StageFailedError(
            "no samples are left to train on; loosen filter.filters or draw more per prompt with "
            "sample.samples_per_prompt"
        )
    with _undisturbed_process(), on_disk(rows, out) as (dataset, lengths):
        tokens = lengths.sum(axis=1).tolist()
        order = reading_order(tokens, batch_size=config.batch_size, epochs=config.epochs, seed=seed)
        ordered = dataset.select(order)
        watched = (
            cliff.Probe(probe, config.probe_margin, ends=ends_on_cliff)
            if probe and config.probe_every
            else None
        )
        steps = _fit(config, model_dir, ordered, seed, device, out, on_step, watched, save_every)
    metrics = _metrics(steps, lengths[order], config.batch_size)
    if watched:
        write_json(out / PROBE, watched.rows())
        metrics |= watched.metrics()
    return metrics


def step_count(config: TrainConfig, rows: int) -> int:
    """Optimiser steps of a training on so many rows."""
    return math.ceil(rows * config.epochs / config.batch_size)


def _metrics(steps: Sequence[_Step], lengths: NDArray[np.int32], batch_size: int) -> dict[str, float | int]:
    """What the training says of itself; means are over completion tokens, quantiles over optimiser steps.

    Args:
        steps: The optimiser steps.
        lengths: (rows, 2) tokens of prompt and completion, in reading order.
        batch_size: Rows of a step.
    """
    lengths = lengths[: len(steps) * batch_size]  # a cliff ends training early
    if not steps:
        return {"steps": 0, "tokens_trained": 0, "tokens_total": 0}
    weights: list[int] = np.add.reduceat(
        lengths[:, 1], range(0, len(lengths), batch_size), dtype=np.int64
    ).tolist()

    def mean(values: Iterator[float]) -> float:
        return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

    return {
        "loss_first": steps[0].loss,
        "loss_last": steps[-1].loss,
        "loss_mean": mean(step.loss for step in steps),
        "entropy_mean": mean(step.entropy for step in steps),
        **quantiles("entropy", [step.entropy for step in steps]),
        "grad_norm_max": max(step.grad_norm for step in steps),
        "steps": len(steps),
        "tokens_trained": int(lengths[:, 1].sum(dtype=np.int64)),
        "tokens_total": int(lengths.sum(dtype=np.int64)),
    }


def _fit(
    config: TrainConfig,
    model_dir: Path,
    ordered: Dataset,
    seed: int,
    device: str,
    out: Path,
    on_step: OnStep | None,
    probe: cliff.Probe | None,
    save_every: int,
) -> list[_Step]:
    """Train, write the adapter, and return what each optimiser step reported."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    model = AutoModelForCausalLM.from_pretrained(
        model_dir,
        dtype="auto",
        trust_remote_code=False,
        use_safetensors=True,
    )
    targets = target_modules(config, model)
    steps: list[_Step] = []
    trainer = SFTTrainer(
        model,
        args=_arguments(config, len(ordered), model.dtype, seed, device, out),
        train_dataset=ordered,
        # TRL's own collator, made here so that TRL changes neither tokenizer nor config.
        data_collator=DataCollatorForLanguageModeling(pad_token_id=models.pad_token_id(model_dir)),
        processing_class=AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=0.0,
            target_modules=targets,
        ),
        callbacks=[
            _watch(steps, on_step, probe),
            *([_probing(probe, config.probe_every)] if probe else []),
            *([training_state.saving(save_every, probe)] if save_every else []),
        ],
    )
    trainer.remove_callback(PrinterCallback)  # prints every step to standard output
    trainer.processing_class = None  # else a copy of the tokenizer lies in every saved state
    saved = training_state.newest(out / SHARDS, probe)
    try:
        with durable.disk_errors(out), cpu_training.quick(trainer.model, device):
            trainer.train(resume_from_checkpoint=str(saved) if saved else None)
    except torch.OutOfMemoryError as error:
        raise StageFailedError(
            f"training ran out of GPU memory with train.micro_batch_size {config.micro_batch}; lower it"
        ) from error
    finally:
        with suppress(OSError):  # it holds the states that a later attempt goes on from
            (out / SHARDS).rmdir()
    if probe is None or probe.cliff is None:
        _save(trainer.model, out)
    shutil.rmtree(out / SHARDS, ignore_errors=True)
    return steps


def _arguments(config: TrainConfig, rows: int, dtype: Any, seed: int, device: str, out: Path) -> Any:
    """TRL's settings for one pass over rows that are already ordered and repeated."""
    import torch
    from trl import SFTConfig

    micro_batch = config.micro_batch
    on_gpu = device != "cpu"
    arguments = SFTConfig(
        output_dir=str(out / SHARDS),
        use_cpu=not on_gpu,
        bf16=dtype == torch.bfloat16 and (not on_gpu or torch.cuda.is_bf16_supported()),
        seed=seed % 2**32,  # numpy takes no more
        # Rows: token-exact, in our order.
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
        num_train_epochs=1,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=config.batch_size // micro_batch,
        # Optimiser.
        loss_type="nll",
        optim="adamw_torch",
        learning_rate=config.learning_rate,
        adam_beta1=0.9,
        adam_beta2=config.adam_beta2,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        # Unlike cosine_with_min_lr, its first step has a rate above zero and its last has the final one.
        lr_scheduler_type="cosine_warmup_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": config.final_lr_share},
        warmup_steps=round(config.warmup_share * math.ceil(rows / config.batch_size)),
        gradient_checkpointing=on_gpu,
        # Steps are saved by `training_state.saving` alone, nothing is sent.
        save_strategy="no",
        push_to_hub=False,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        logging_nan_inf_filter=False,  # the filter would hide a diverged step
        dataloader_num_workers=0,
        dataloader_pin_memory=on_gpu,
    )
    if on_gpu and arguments.n_gpu > 1:
        arguments._n_gpu = 1  # else Trainer wraps the model in DataParallel, which TRL refuses
    return arguments


def target_modules(config: TrainConfig, model: Any) -> str | list[str]:
    """Which layers get an adapter, as PEFT takes it: "all-linear", or names of layers.

    In a mixture of experts only attention does. Experts are one fused tensor in memory and many on disk, and
    no adapter of a fused tensor can be merged into the files here.

    Raises:
        ConfigError: The settings name a layer that the model lacks or that cannot be merged.
    """
    import torch

    mixture = is_mixture(model.config)
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not model.get_output_embeddings()
        and (not mixture or "attn" in name or "attention" in name)
    }
    if config.target_modules == "all-linear":
        return sorted(linear) if mixture else "all-linear"
    unknown = sorted({target.rpartition(".")[2] for target in config.target_modules} - linear)
    if unknown:
        raise ConfigError(
            f"train.target_modules names {', '.join(unknown)}, which cannot get an adapter in this model; "
            f"choose from {', '.join(sorted(linear))}, or all-linear"
            + (" (in a mixture of experts: attention alone)" if mixture else "")
        )
    return list(config.target_modules)


def is_mixture(model_config: Any) -> bool:
    """Whether a model has experts, by the names that configs give their number."""
    text = model_config.get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return any((getattr(text, name, None) or 0) > 1 for name in names)


def _watch(steps: list[_Step], on_step: OnStep | None, probe: cliff.Probe | None) -> Any:
    """A callback that records each step; a loss that is not finite is a cliff where a probe watches."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            steps.extend(_step(logs) for logs in state.log_history)  # of a training that is gone on with

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "loss" not in logs:  # the summary after the last step
                return
            step = _step(logs)
            if not math.isfinite(step.loss) or not math.isfinite(step.grad_norm):
                if probe is not None and probe.ends:
                    probe.diverge(state.global_step)
                    control.should_training_stop = True
                    return
                raise StageFailedError(
                    f"training diverged at step {state.global_step} of {state.max_steps} (loss {step.loss}, "
                    f"gradient norm {step.grad_norm}); lower train.learning_rate {args.learning_rate:g}"
                )
            steps.append(step)
            if on_step:
                on_step(state.global_step, state.max_steps, step.loss)

    return Watch()


def _step(logs: Mapping[str, Any]) -> _Step:
    return _Step(float(logs["loss"]), float(logs["grad_norm"]), float(logs["entropy"]))


def _probing(probe: cliff.Probe, every: int) -> Any:
    """A callback that probes before the first step and every `every` steps, and ends training on a cliff."""
    from transformers import TrainerCallback

    class Probing(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            if state.global_step == 0:
                probe.measure(model, 0)

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            if state.global_step % every == 0 and probe.measure(model, state.global_step):
                control.should_training_stop = True

    return Probing()


def _save(peft_model: Any, out: Path) -> None:
    """Write the adapter as PEFT does, without its README and without what differs between machines."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    tensors = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    plain = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    with durable.disk_errors(out / WEIGHTS):
        save_file(plain, out / WEIGHTS, metadata={"format": "pt"})
    settings = peft_model.peft_config["default"].to_dict()
    varying = {"base_model_name_or_path": None, "inference_mode": True, "peft_version": None}
    written = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in (settings | varying).items()
    }
    text = json.dumps(written, indent=2, sort_keys=True)
    (out / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


@contextmanager
def _undisturbed_process() -> Iterator[None]:
    """Give the process back as it was: random states, environment, accelerate's singletons, memory."""
    import numpy as np
    import torch
    from accelerate.state import AcceleratorState, GradientState
    from huggingface_hub import constants
    from transformers.utils import logging

    environment = set(os.environ)
    state, numpy_state = random.getstate(), np.random.get_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    telemetry_off = constants.HF_HUB_DISABLE_TELEMETRY
    constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL reports every training to the Hub
    try:
        with torch.random.fork_rng():
            if torch.cuda.is_available():  # attention's backward pass adds in any order otherwise
                torch.use_deterministic_algorithms(True, warn_only=True)
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        constants.HF_HUB_DISABLE_TELEMETRY = telemetry_off
        if shows_bars:
            logging.enable_progress_bar()
        for name in set(os.environ) - environment:  # importing TRL sets vLLM's log level
            del os.environ[name]
        random.setstate(state)
        np.random.set_state(numpy_state)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        give_back()
