"""What the workbench counts: the engine's work, a training's steps, and the model's size."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ssd_loop import costs, models, progress, training
from ssd_loop.config import RunConfig
from ssd_loop.costs import Meter, Work
from ssd_loop.engines import CPU_ENVIRONMENT, Completion, Engine, Request
from ssd_loop.errors import ConfigError
from ssd_loop.training_rows import TrainingRow
from ssd_loop.workbench import MeteredEngine, MeteredSteps, Workbench
from tests import tiny
from tests.rows import ScriptedEngine

REQUESTS = [Request((1,) * (i + 1), i, 1.0, 0, 1.0, 8, (2,)) for i in range(6)]
TEXTS = [[1, 2, 3], [4, 5]]
PAUSE_S = 0.02


@dataclass
class SlowEngine(ScriptedEngine):
    """Takes its time, refuses long prompts at once, and knows whether it was given up."""

    given_up: bool = False

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        if len(requests[0].prompt_token_ids) > 8:
            raise ConfigError("too long")
        return self._slowly(super().generate(requests))

    def _slowly(self, answers: Iterator[Completion]) -> Iterator[Completion]:
        try:
            for answer in answers:
                time.sleep(PAUSE_S)
                yield answer
        except GeneratorExit:
            self.given_up = True
            raise


def bench(model: Path, **train: Any) -> Workbench:
    config = RunConfig.model_validate(
        {
            "model": {"name": str(model)},
            "train": {"lora_rank": 4, "batch_size": 4, "micro_batch_size": 4, **train},
            "engine": {"name": "transformers", "max_model_len": 1024},
        }
    )
    return Workbench(config, models.resolve(str(model), None, "auto"))


def test_completions_pass_through_and_are_counted() -> None:
    meter = Meter()
    plain = list(ScriptedEngine().generate(REQUESTS))
    assert list(MeteredEngine(ScriptedEngine(), meter).generate(REQUESTS)) == plain
    done = meter.read()
    assert done.prompt_tokens == 1 + 2 + 3 + 4 + 5 + 6
    assert done.drawn_tokens == sum(len(answer.token_ids) for answer in plain)


def test_scored_texts_are_counted() -> None:
    meter = Meter()
    scores = list(MeteredEngine(ScriptedEngine(), meter).score(TEXTS, top_k=2))
    assert [len(score.logprobs) for score in scores] == [2, 1]
    assert meter.read().scored_tokens == 5


def test_what_dies_half_way_has_counted_what_it_drew() -> None:
    meter = Meter()
    with pytest.raises(KeyboardInterrupt):
        list(MeteredEngine(ScriptedEngine(dies_after=2), meter).generate(REQUESTS))
    assert meter.read().prompt_tokens == 1 + 2


def test_waiting_for_answers_is_work_and_using_them_is_not() -> None:
    began, meter = time.monotonic(), Meter()
    for _ in MeteredEngine(SlowEngine(), meter).generate(REQUESTS):
        time.sleep(PAUSE_S)
    elapsed = time.monotonic() - began
    assert 6 * PAUSE_S <= meter.read().busy_seconds <= elapsed - 6 * PAUSE_S


def test_a_request_is_refused_at_once() -> None:
    with pytest.raises(ConfigError):
        MeteredEngine(SlowEngine(), Meter()).generate([Request((1,) * 9, 0, 1.0, 0, 1.0, 8, (2,))])


def test_giving_the_answers_up_stops_the_engine() -> None:
    engine = SlowEngine()
    answers: Any = MeteredEngine(engine, Meter()).generate(REQUESTS)
    next(answers)
    answers.close()
    assert engine.given_up


def test_everything_else_is_the_engines_own(tiny_llama: Path) -> None:
    opened: Engine = bench(tiny_llama).engine(tiny_llama)
    assert isinstance(opened, MeteredEngine)
    assert opened.name == "transformers"
    opened.release()
    opened.close()


def test_steps_share_the_tokens_and_the_first_lasts_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    meter, seen = Meter(), []
    with progress.task("train", 3, "steps") as shown:
        steps = MeteredSteps(shown, meter, 3, prompts=100, tokens=50)
        for now in (1000.0, 1002.0, 1005.0):  # how long the first took with what came before it, none knows
            monkeypatch.setattr(time, "monotonic", lambda now=now: now)
            steps.advance()
            seen.append((meter.read().trained_prompt_tokens, meter.read().trained_tokens))
    assert seen == [(33, 16), (66, 33), (100, 50)]
    assert meter.read().busy_seconds == (2.0 + 3.0) * 3 / 2


@pytest.mark.slow
def test_a_real_training_is_counted(tiny_llama: Path, tmp_path: Path) -> None:
    own = bench(tiny_llama)
    rows = [TrainingRow([5 + i] * (3 + i), [9] * 4 + [2]) for i in range(10)]
    steps = training.step_count(own.config.train, len(rows))
    before = own.meter.read()
    with own.training(rows, own.config.train.epochs, steps) as task:
        metrics = training.train(
            own.config.train,
            model_dir=tiny_llama,
            rows=rows,
            seed=1,
            device="cpu",
            out=tmp_path,
            on_step=lambda step, total, loss: task.advance(),
        )
    done = own.meter.read() - before
    assert done.trained_tokens == metrics["tokens_trained"]
    assert done.trained_tokens + done.trained_prompt_tokens == metrics["tokens_total"]
    assert 0 < done.busy_seconds < done.seconds


def linear(counter: FlopCounterMode) -> int:
    """Operations of the matrix products of linear layers; attention's own are of another kind."""
    counted = counter.get_flop_counts()["Global"]
    return sum(
        count
        for operation, count in counted.items()
        if operation in (torch.ops.aten.mm, torch.ops.aten.addmm)
    )


@pytest.mark.parametrize("kind", ["llama", "qwen3", "qwen3_moe"])
def test_a_forward_pass_takes_two_operations_for_each_parameter(kind: tiny.TinyKind, tmp_path: Path) -> None:
    """By PyTorch's own counter."""
    from transformers import AutoModelForCausalLM

    folder = tiny.build(kind, tmp_path / kind, dtype="float32")
    # One expert after the other: other implementations are not all known to the counter.
    model = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager")
    tokens = 16
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(tokens)[None] + 10)
    products = linear(counter)
    assert costs.flops(Work(drawn_tokens=tokens), bench(folder).size) == products


def test_a_training_step_takes_about_what_the_formula_says(tmp_path: Path) -> None:
    """Below it by the gradients that the first layer passes no further, a large share of two layers."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tiny.build("qwen3", tmp_path / "model", dtype="float32")
    size = bench(folder).size
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=4, target_modules="all-linear")
    )
    assert size.adapter == sum(p.numel() for p in model.parameters() if p.requires_grad)
    tokens = torch.arange(16)[None] + 10
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens).loss.backward()
    products = linear(counter)
    formula = costs.flops(Work(trained_tokens=16), size)
    assert 0.85 * formula < products <= formula


GROWTH = """
import ssd_loop.workbench
import torch

def resident_mib():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * 4096 / 2**20

weight = torch.ones(64, 64, dtype=torch.bfloat16)
weight @ weight
before = resident_mib()
for rows in range(1, 1200):
    torch.ones(rows, 64, dtype=torch.bfloat16) @ weight
print(resident_mib() - before)
"""


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 here")
def test_products_of_many_shapes_take_little_memory() -> None:
    """oneDNN keeps some 600 KiB for each shape that it meets, and each batch has shapes of its own."""

    def grown_mib(**environment: str) -> float:
        bare = {name: value for name, value in os.environ.items() if name not in CPU_ENVIRONMENT}
        done = subprocess.run(
            [sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True, env=bare | environment
        )
        return float(done.stdout)

    as_they_come = {name: "1024" for name in CPU_ENVIRONMENT if "CAPACITY" in name}
    assert grown_mib() < 0.4 * grown_mib(**as_they_come)
