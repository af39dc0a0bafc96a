"""What a run holds open: the base model, one engine with the current weights, and the tokenizer."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ssd_loop import costs, interrupts, models, progress
from ssd_loop.config import RunConfig
from ssd_loop.costs import Meter, ModelSize, Work
from ssd_loop.engines import (
    CPU_ENVIRONMENT,
    Completion,
    Engine,
    EngineName,
    Request,
    TokenScores,
    engine_name,
    open_engine,
)
from ssd_loop.prompts import Renderer
from ssd_loop.sampling import Drawing
from ssd_loop.training_rows import Counted, TrainingRow

if TYPE_CHECKING:
    from ssd_loop.doctor.subject import Subject

T = TypeVar("T")

# Takes effect because torch is imported later than this module.
for _name, _value in CPU_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)


@dataclass
class Workbench:
    """Opens heavy things when they are first needed, and once.

    Attributes:
        config: The run's settings.
        base: The model before the first round, in the dtype that the engine runs.
        meter: Counts what the device does.
    """

    config: RunConfig
    base: models.ResolvedModel
    meter: Meter = field(default_factory=Meter)
    _engine: Engine | None = None

    def engine(self, model_dir: Path) -> Engine:
        """The run's one engine, holding the weights of `model_dir`."""
        if self._engine is None:
            self._engine = MeteredEngine(open_engine(self.config.engine, self.base.dtype), self.meter)
        self._engine.load(model_dir)  # nothing is done where these weights are in it already
        return self._engine

    @contextmanager
    def training(self, rows: Counted[TrainingRow], epochs: int, steps: int) -> Iterator[progress.Task]:
        """A task to advance after each step of a training, which is shown and counted.

        Args:
            rows: What is trained on.
            epochs: How often.
            steps: Optimiser steps in all; each is taken to have the same share of the tokens.
        """
        with progress.task("train", steps, "steps") as shown:
            prompts = tokens = 0
            for row in rows:
                prompts += epochs * len(row.prompt_token_ids)
                tokens += epochs * len(row.token_ids)
            yield MeteredSteps(shown, self.meter, steps, prompts, tokens)

    def release(self) -> None:
        """Give the engine's memory back until it is asked again."""
        if self._engine is not None:
            self._engine.release()

    def close(self) -> None:
        """Stop the engine and all it started."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    @property
    def engine_name(self) -> EngineName:
        """Which engine draws, told without opening it."""
        return engine_name(self.config.engine)

    @cached_property
    def subject(self) -> Subject:
        """The base model as `doctor` looks at it: its architecture and its sizes."""
        from ssd_loop.doctor.subject import Subject, Tasks

        return Subject(self.config, self, Tasks(self.config))

    @cached_property
    def size(self) -> ModelSize:
        """What floating-point operations are counted from."""
        subject = self.subject
        names = {id(module): f"{name}.weight" for name, module in subject.outline.named_modules()}
        matmul = costs.matmul_parameters(
            {name: shape for name, (_, shape) in subject.tensors.items()},
            embedding=names[id(subject.outline.get_input_embeddings())],
            head=names[id(subject.outline.get_output_embeddings())],
            active_share=costs.active_share(subject.text_config),
        )
        return ModelSize(matmul, subject.sizes.adapter)

    @cached_property
    def renderer(self) -> Renderer:
        """The base model's tokenizer and template; every round renders with them."""
        from transformers import AutoTokenizer

        model = self.config.model
        tokenizer = AutoTokenizer.from_pretrained(self.base.path, trust_remote_code=False)
        return Renderer(tokenizer, model.system_prompt, model.template_settings())

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a turn."""
        return models.stop_token_ids(self.base.path)

    @cached_property
    def drawing(self) -> Drawing:
        """What all completions of the run share."""
        sample = self.config.sample
        return Drawing(self.renderer, self.stop_token_ids, sample.seed, sample.shard_size)

    @cached_property
    def device(self) -> str:
        """The device that trains: cpu or cuda."""
        from ssd_loop.engines.transformers import choose_device

        device: str = choose_device(self.config.engine.device).type
        return device


class MeteredEngine:
    """An engine whose work is counted; everything else about it is the engine's own."""

    def __init__(self, engine: Engine, meter: Meter) -> None:
        self._engine, self._meter = engine, meter

    @property
    def name(self) -> EngineName:
        """Which implementation this is."""
        return self._engine.name

    def load(self, model_dir: Path) -> None:
        """Make the weights in `model_dir` the ones that answer."""
        self._engine.load(model_dir)

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Completions in the order of the requests."""
        return self._drawn(tuple(requests), self._engine.generate(requests))

    def score(self, texts: Sequence[Sequence[int]], top_k: int) -> Iterator[TokenScores]:
        """Log-probs of given token ids, with the `top_k` likeliest tokens at each position."""
        return self._scored(tuple(texts), self._engine.score(texts, top_k))

    def release(self) -> None:
        """Give memory back for as long as nothing is asked of the engine."""
        self._engine.release()

    def close(self) -> None:
        """Stop the engine and everything it started."""
        self._engine.close()

    def _drawn(self, requests: Sequence[Request], answers: Iterator[Completion]) -> Iterator[Completion]:
        for request, done in zip(requests, self._worked_for(answers), strict=True):
            work = Work(prompt_tokens=len(request.prompt_token_ids), drawn_tokens=len(done.token_ids))
            self._meter.add(work)
            yield done

    def _scored(self, texts: Sequence[Sequence[int]], scores: Iterator[TokenScores]) -> Iterator[TokenScores]:
        for text, score in zip(texts, self._worked_for(scores), strict=True):
            self._meter.add(Work(scored_tokens=len(text)))
            yield score

    def _worked_for(self, answers: Iterator[T]) -> Iterator[T]:
        """The answers; the time in which the next is waited for is the device's."""
        while True:
            with self._meter.working():
                answer = next(answers, None)
            if answer is None:
                return
            interrupts.heed()
            yield answer


class MeteredSteps:
    """The steps of a training, counted as they end.

    Trainers report the end of a step and not its beginning, so the first is taken to last as long as the
    others on average. What comes before it, such as loading the model, is no work of the device.
    """

    def __init__(self, shown: progress.Task, meter: Meter, steps: int, prompts: int, tokens: int) -> None:
        self._shown, self._meter = shown, meter
        self._steps, self._prompts, self._tokens = steps, prompts, tokens
        self._done, self._first_end, self._counted = 0, 0.0, Work()

    def advance(self, samples: int = 1, tokens: int = 0) -> None:
        """Count `samples` finished steps; a signal that was dropped ends the training here."""
        interrupts.heed()
        now, self._done = time.monotonic(), self._done + samples
        if self._done == samples:
            self._first_end = now
        timed = self._done - 1  # steps whose beginning is known: the end of the one before
        done = Work(
            busy_seconds=(now - self._first_end) * self._done / timed if timed else 0.0,
            trained_prompt_tokens=self._prompts * self._done // self._steps,
            trained_tokens=self._tokens * self._done // self._steps,
        )
        self._meter.add(done - self._counted)
        self._counted = done
        self._shown.advance(samples, tokens)
