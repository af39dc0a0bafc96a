"""Stage `sample`: draw completions, and the sharded drawing that evaluation shares.

A shard is a fixed list of requests that the engine gets alone and answers whole. Finished shards stay on
disk, so a killed stage goes on after the last one with the same bytes as if it had never stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import TypeVar, overload

from ssd_loop import progress
from ssd_loop.config import EvaluateConfig, SampleConfig
from ssd_loop.durable import write_bytes
from ssd_loop.engines import Completion, Engine, Request
from ssd_loop.errors import StageFailedError
from ssd_loop.problems import Problem
from ssd_loop.prompts import Renderer
from ssd_loop.records import Sample, Writer, derive_seed
from ssd_loop.store import SHARDS, Metrics

STAGE_VERSION = 1
SAMPLES = "samples.parquet"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Draw:
    """One completion that is asked for, and who it is."""

    panel: str
    prompt_id: str
    sample_index: int
    request: Request


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen: temperature, then top-k (0 = off), then top-p."""

    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True)
class Drawing:
    """What all completions of a run share.

    Attributes:
        renderer: Turns tasks into prompt tokens and completions into text.
        stop_token_ids: Every token that ends an answer.
        run_seed: What the completions' own seeds are derived from.
        shard_size: Requests that the engine gets at once.
    """

    renderer: Renderer
    stop_token_ids: tuple[int, ...]
    run_seed: int
    shard_size: int


@dataclass(frozen=True)
class Draws(Sequence[Draw]):
    """The draws for some problems, problem by problem, made when they are asked for.

    A million of them, prompts included, would take a gigabyte.

    Attributes:
        problems: What is asked.
        samples: Completions of each.
        first: Index of the first sample.
    """

    drawing: Drawing
    problems: Sequence[Problem]
    samples: int
    decoding: Decoding
    round_index: int
    first: int

    def __len__(self) -> int:
        return len(self.problems) * self.samples

    @overload
    def __getitem__(self, at: int) -> Draw: ...

    @overload
    def __getitem__(self, at: slice) -> list[Draw]: ...

    def __getitem__(self, at: int | slice) -> Draw | list[Draw]:
        wanted = range(len(self))[at]
        return list(self._made(wanted)) if isinstance(wanted, range) else next(self._made([wanted]))

    def __iter__(self) -> Iterator[Draw]:
        return self._made(range(len(self)))

    def _made(self, wanted: Iterable[int]) -> Iterator[Draw]:
        for which, places in groupby(wanted, key=lambda at: at // self.samples):
            problem = self.problems[which]
            prompt_ids = self.drawing.renderer.prompt_ids(problem)
            for place in places:
                index = self.first + place % self.samples
                yield Draw(problem.panel, problem.id, index, self._request(problem, prompt_ids, index))

    def _request(self, problem: Problem, prompt_ids: tuple[int, ...], index: int) -> Request:
        run_seed = self.drawing.run_seed
        return Request(
            prompt_token_ids=prompt_ids,
            seed=completion_seed(run_seed, self.round_index, problem.panel, problem.id, index),
            temperature=self.decoding.temperature,
            top_k=self.decoding.top_k,
            top_p=self.decoding.top_p,
            max_new_tokens=self.decoding.max_new_tokens,
            stop_token_ids=self.drawing.stop_token_ids,
        )


def plan(
    drawing: Drawing,
    problems: Sequence[Problem],
    samples: int,
    *,
    decoding: Decoding,
    round_index: int,
    first: int = 0,
) -> Draws:
    """The draws for some problems, each with a seed of its own; `first` is the index of the first sample."""
    return Draws(drawing, problems, samples, decoding, round_index, first)


def decoding_of(config: SampleConfig | EvaluateConfig) -> Decoding:
    """How a round samples, or how it is measured."""
    return Decoding(config.temperature, config.top_k, config.top_p, config.max_new_tokens)


def completion_seed(run_seed: int, round_index: int, panel: str, prompt_id: str, index: int) -> int:
    """The seed of one completion alone."""
    return derive_seed(run_seed, round_index, panel, prompt_id, index)


def split_shards(items: Sequence[Item], shard_size: int) -> Iterator[Sequence[Item]]:
    """Even shards of `shard_size` draws, or of other items, or somewhat more, never a small rest.

    Small batches change the low bits of log-probs, and with them the tokens.
    """
    count = max(1, len(items) // shard_size)
    edges = [round(i * len(items) / count) for i in range(count + 1)]
    return (items[a:b] for a, b in pairwise(edges))


def draw_all(
    drawing: Drawing, draws: Sequence[Draw], *, engine: Engine, policy_round: int, out: Path
) -> list[Sample]:
    """Draw every completion, keeping finished shards under ``out/shards``.

    Raises:
        StageFailedError: log-probs of the base model are not finite; those of later rounds have a monitor.
    """
    rows: list[Sample] = []
    with closing(drawn(drawing, draws, engine=engine, policy_round=policy_round, out=out)) as shards:
        for shard in shards:
            if policy_round == 0:
                _require_finite(shard)
            rows += shard
    return rows


def drawn(
    drawing: Drawing, draws: Sequence[Draw], *, engine: Engine, policy_round: int, out: Path
) -> Generator[list[Sample], None, None]:
    """The completions shard by shard, each kept under ``out/shards`` as soon as it is finished."""
    with progress.task("draw", len(draws), "samples") as task:
        for number, shard in enumerate(split_shards(draws, drawing.shard_size)):
            path = out / SHARDS / f"{number:05d}.jsonl"
            if path.exists():
                task.advance(len(shard))
            else:
                _draw_shard(shard, engine, path, task)
            # Read back also when just drawn: a resumed stage takes the same way to the same bytes.
            pairs = zip(shard, _read_shard(path), strict=True)
            yield [_sample(draw, done, drawing.renderer, policy_round) for draw, done in pairs]


def _draw_shard(shard: Sequence[Draw], engine: Engine, path: Path, task: progress.Task) -> None:
    lines = []
    for done in engine.generate([draw.request for draw in shard]):
        lines.append(json.dumps([done.token_ids, done.finish_reason, done.logprob]))
        task.advance(tokens=len(done.token_ids))
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def _read_shard(path: Path) -> Iterator[Completion]:
    for line in path.read_text(encoding="utf-8").splitlines():
        token_ids, finish_reason, logprob = json.loads(line)
        yield Completion(tuple(token_ids), finish_reason, logprob)


def _require_finite(rows: Sequence[Sample]) -> None:
    broken = sum(not math.isfinite(row.logprob) for row in rows)
    if broken:
        raise StageFailedError(
            f"{broken} of {len(rows)} answers have log-probs that are not finite: the weights hold NaN or "
            "infinity, or the model overflows in this precision; check model.name, or set model.dtype to "
            "bfloat16 or float32"
        )


def _sample(draw: Draw, done: Completion, renderer: Renderer, policy_round: int) -> Sample:
    return Sample(
        panel=draw.panel,
        prompt_id=draw.prompt_id,
        sample_index=draw.sample_index,
        seed=draw.request.seed,
        policy_round=policy_round,
        prompt_token_ids=draw.request.prompt_token_ids,
        token_ids=done.token_ids,
        text=renderer.text(done.token_ids, draw.request.stop_token_ids),
        finish_reason=done.finish_reason,
        logprob=done.logprob,
    )


def run(
    config: SampleConfig,
    prompts: Sequence[Problem],
    drawing: Drawing,
    *,
    engine: Engine,
    round_index: int,
    policy_round: int,
    out: Path,
) -> Metrics:
    """Draw the round's training samples from the weights that the engine holds, those of `policy_round`.

    Writes ``samples.parquet``.

    Raises:
        StageFailedError: log-probs are not finite; nothing can be learned from such samples.
    """
    draws = plan(
        drawing, prompts, config.samples_per_prompt, decoding=decoding_of(config), round_index=round_index
    )
    shards = drawn(drawing, draws, engine=engine, policy_round=policy_round, out=out)
    with closing(shards), Writer(out / SAMPLES, Sample) as writer:

        def written() -> Iterator[Sample]:
            for shard in shards:
                _require_finite(shard)
                for row in shard:
                    writer.add(row)
                    yield row

        metrics = summary(written())
    return {**metrics, "template_sha256": drawing.renderer.template_sha256()}


def summary(rows: Iterable[Sample]) -> Metrics:
    """Counts and means over samples: tokens, share cut by length, mean log-prob per token in nats."""
    count = tokens = cut = 0
    logprob = 0.0
    for row in rows:
        count += 1
        tokens += len(row.token_ids)
        cut += row.finish_reason == "length"
        logprob += row.logprob
    return {
        "samples": count,
        "tokens": tokens,
        "truncated_share": cut / count,
        "mean_logprob": logprob / max(tokens, 1),
    }
