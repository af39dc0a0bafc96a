"""Training: this engine's steps against TRL's `SFTTrainer`, and against the matrix products in them.

    python -m benchmarks.speed.training --out FOLDER [--repeats 3]

All arms train LoRA of rank 16 on the same 64 prompts and answers, one pass, batches of 8, each time in a
process of its own. Rates are tokens of prompts and completions, no padding, per second of the steps after the
first.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed import machine, material
from benchmarks.speed.part import alone, main

Rows = Sequence[tuple[list[int], list[int]]]
BATCH_SIZE, RANK = 8, 16


def ours(model_dir: Path, rows: Rows, micro_batch_size: int | None = None) -> float:
    """Tokens per second of `ssd_loop.training.train`."""
    import ssd_loop.workbench  # noqa: F401  # as in a run: it says how threads wait
    from ssd_loop.config import TrainConfig
    from ssd_loop.training import train
    from ssd_loop.training_rows import TrainingRow, reading_order

    config = TrainConfig(batch_size=BATCH_SIZE, lora_rank=RANK)
    if micro_batch_size:
        config = config.model_copy(update={"micro_batch_size": micro_batch_size})
    lengths = [len(prompt) + len(completion) for prompt, completion in rows]
    order = reading_order(lengths, batch_size=BATCH_SIZE, epochs=1, seed=0)
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        train(
            config,
            model_dir=model_dir,
            rows=[TrainingRow(*row) for row in rows],
            seed=0,
            device="cpu",
            out=Path(scratch),
            on_step=lambda *_: ends.append(time.perf_counter()),
        )
    return sum(lengths[at] for at in order[BATCH_SIZE:]) / (ends[-1] - ends[0])


def trls(model_dir: Path, rows: Rows, **changed: Any) -> float:
    """Tokens per second of TRL's trainer with its defaults, or with some settings changed."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    ends: list[float] = []
    seen: list[int] = []  # tokens of each batch

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as scratch:
        settings = {"num_train_epochs": 1, "report_to": "none", "disable_tqdm": True, "seed": 0}
        trainer = SFTTrainer(
            str(model_dir),
            args=SFTConfig(output_dir=scratch, use_cpu=True, **settings, **changed),
            train_dataset=Dataset.from_list(
                [{"input_ids": p + c, "labels": [-100] * len(p) + c} for p, c in rows]
            ),
            processing_class=AutoTokenizer.from_pretrained(model_dir),
            peft_config=LoraConfig(r=RANK, target_modules="all-linear"),
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        collate = trainer.data_collator

        def counting(batch: list[dict[str, Any]]) -> Any:
            seen.append(sum(len(row["input_ids"]) for row in batch))
            return collate(batch)

        trainer.data_collator = counting
        trainer.train()
    assert len(seen) == len(ends), "a batch is a step"
    return sum(seen[1:]) / (ends[-1] - ends[0])


OURS, DEFAULTS = "ssd_loop", "TRL SFTTrainer, defaults"
ARMS: dict[str, tuple[Callable[..., float], dict[str, Any]]] = {
    OURS: (ours, {}),
    "ssd_loop, micro-batches of 8": (ours, {"micro_batch_size": 8}),
    DEFAULTS: (trls, {}),
    "TRL SFTTrainer, grouped by length, no checkpointing": (
        trls,
        {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"},
    ),
}


def one(name: str, model_dir: str, rows_file: str) -> dict[str, float]:
    """One arm, once: its rate and the peak memory of its process."""
    work, changed = ARMS[name]
    rate = work(Path(model_dir), material.read_rows(Path(rows_file)), **changed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    return {"tokens_per_s": rate, "peak_gib": peak}


def flops_per_token(model_dir: Path, rows: Rows) -> float:
    """Operations of one trained token: two a parameter forward, two backward for what is frozen.

    The output layer is met by completion tokens alone, an adapter's parameters also need their own gradient.
    Finer than `ssd_loop.costs.flops`, which counts the output layer for every token and leaves attention out.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_dir).get_text_config()
    shapes = machine.linear_shapes(model_dir) * config.num_hidden_layers
    body = sum(a * b for a, b in shapes)
    adapter = sum(RANK * (a + b) for a, b in shapes)
    head = config.vocab_size * config.hidden_size
    completions = sum(len(completion) for _, completion in rows)
    total = sum(len(prompt) + len(completion) for prompt, completion in rows)
    attended = sum((len(p) + len(c)) ** 2 for p, c in rows) / total / 2  # causal: half of all pairs
    attention = (
        4.0 * attended * config.num_attention_heads * machine.head_size(config) * config.num_hidden_layers
    )
    return 4.0 * body + 6.0 * adapter + 4.0 * head * completions / total + 3.0 * attention


def measure(out: Path, repeats: int) -> dict[str, Any]:
    """All arms in turn, so often; and what the products alone allow."""
    of = material.bench()
    model_dir, file = of.base.path, material.rows_file(out, of)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    peaks = []
    for _ in range(repeats):
        for name in ARMS:
            found[name].append(alone("benchmarks.speed.training", name, str(model_dir), str(file)))
        peaks.append(machine.product_gflops(480, machine.linear_shapes(model_dir)))
    rows = material.read_rows(file)
    work = flops_per_token(model_dir, rows)
    rate = statistics.median(one["tokens_per_s"] for one in found[OURS])
    return {
        "tokens": sum(len(p) + len(c) for p, c in rows),
        "tokens_per_s": {name: [each["tokens_per_s"] for each in runs] for name, runs in found.items()},
        "peak_gib": {name: max(each["peak_gib"] for each in runs) for name, runs in found.items()},
        "flops_per_token": work,
        "product_peak_gflops": peaks,
        "share_of_peak": rate * work / (statistics.median(peaks) * 1e9),
    }


if __name__ == "__main__":
    main(measure, __doc__, one)
