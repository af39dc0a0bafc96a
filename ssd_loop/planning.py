"""What a run will cost, told before it starts: its real stages once, at small scale, multiplied out.

The calibration opens the engine, draws one shard of training prompts and one of panel problems, judges and
filters them, trains a few steps, merges, swaps the weights and scores the reference texts. What a stage pays
once (a process, a model that is loaded) is kept apart from what it pays for each sample. All of it happens in
a temporary folder, which needs room for one merged model; nothing is left.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from ssd_loop import (
    costs,
    evaluation,
    filtering,
    finals,
    gate,
    judging,
    merging,
    mixing,
    models,
    sampling,
    sweeping,
    training,
)
from ssd_loop.config import RunConfig, TrainConfig
from ssd_loop.costs import ModelSize, Work
from ssd_loop.doctor import room
from ssd_loop.doctor.subject import Subject, Tasks, gib
from ssd_loop.lora import Term
from ssd_loop.monitors import cliff
from ssd_loop.place import SEEDS
from ssd_loop.problems import Problem
from ssd_loop.records import Sample, derive_seed, read_rows
from ssd_loop.weights import effective_rank
from ssd_loop.workbench import Workbench

T = TypeVar("T")
Works = dict[tuple[int, str], Work]  # by round and stage

STEPS = 4  # optimiser steps of the calibration: the first has no measured time, the others differ in length
LEFT_OUT = (
    "second looks, which the monitors take where they are suspicious (up to monitor.second_look times a "
    "panel's samples)",
    "the monitors' own arithmetic, and hashing what is kept",
    "a stop before the last round, remedies, and work that is done again after a kill",
)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Completions that were drawn, and what that took."""

    samples: int
    work: Work


@dataclass(frozen=True, slots=True)
class Trained:
    """A training of a few steps.

    Attributes:
        rows: What was trained on, repetitions counted.
        steps: The work of its steps.
        start_s: What every training pays besides: loading the model, a first probe, writing the adapter.
    """

    rows: int
    steps: Work
    start_s: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the stages took at small scale.

    Attributes:
        engine_start_s: Starting the engine with the base; once a run.
        imports_s: Importing the trainer's libraries; once a run.
        sampled: Completions of training prompts.
        filter_s: Filtering them.
        kept_share: Share of them that was kept.
        trained: The training.
        merge_s: Writing merged weights.
        gate_s: Comparing them with the exact sum; the base's part, a third, is done once a run.
        load_s: Giving the engine the weights of another round.
        evaluated: Completions of panel problems, judged.
        scored: Scoring the reference texts.
    """

    engine_start_s: float
    imports_s: float
    sampled: Drawn
    filter_s: float
    kept_share: float
    trained: Trained
    merge_s: float
    gate_s: float
    load_s: float
    evaluated: Drawn
    scored: Work


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much a run does.

    Attributes:
        prompts: Completions of training prompts, each round.
        human: Training prompts with a human-written solution.
        panels: Completions of panel problems, each later round.
        probe: Tokens of one probe inside training.
        swept: Completions of a sweep over decoding settings, of each of two models; 0 for none.
        final: Completions of one arm of the final figure; 0 for none.
    """

    prompts: int
    human: int
    panels: int
    probe: int
    swept: int = 0
    final: int = 0


def predict(config: RunConfig, *, price_per_device_hour: float = 0.0) -> dict[str, Any]:
    """What a run with these settings will need, as plain data; it is not started.

    Nothing is written but temporary files, and what resolving a model writes anyway, into the model cache and
    the Hub's.

    Args:
        config: The settings of the run.
        price_per_device_hour: In any currency; 0 is unknown.

    Raises:
        ConfigError: the settings, the prompts or the model cannot be used.
        StageFailedError: a stage fails here as it would in the run.
    """
    tasks = Tasks(config)
    prompts = tasks.problems["train"]
    judging.check_prompts(config.filter.filters, prompts)
    judging.require_sandbox(config.sandbox)
    base = models.resolve(config.model.name, config.model.revision, config.model.dtype)
    models.check_opens(base.path, config.model.name)
    bench = Workbench(config, base)
    subject = bench.subject
    findings = [room.check_memory(subject), room.check_disk(subject)]
    texts = evaluation.reference_texts(config.evaluate, bench.renderer)
    amounts = amounts_of(config, tasks, [len(text["token_ids"]) for text in texts])
    with tempfile.TemporaryDirectory(prefix="ssd_loop-plan-") as scratch:
        try:
            found = calibrate(bench, prompts, texts, Path(scratch))
        finally:
            bench.close()

    def priced(works: Works) -> dict[str, Any]:
        spent = {key: costs.of_work(key[1], work, bench.size) for key, work in works.items()}
        return costs.ledger(spent, price_per_device_hour=price_per_device_hour)

    memory, ended = memory_bytes(subject), afterwards(config, found, amounts)
    return {
        "model": base.title,
        "dtype": base.dtype,
        "engine": bench.engine_name,
        "device": bench.device,
        "rounds": config.rounds,
        "parameters": asdict(bench.size),
        "calibration": asdict(found),
        "amounts": asdict(amounts),
        "ledger": priced(multiplied(config, found, amounts, bench.size)),
        "afterwards": priced(ended) if ended else None,
        "memory_bytes": memory | {"peak": max(memory.values())},
        "disk_bytes": room.disk_bytes(subject),
        "findings": [asdict(finding) for finding in findings],
        "left_out": list(LEFT_OUT),
    }


def amounts_of(config: RunConfig, tasks: Tasks, lengths: Sequence[int]) -> Amounts:
    """How much the run does; `lengths` are those of the reference texts, tokens."""
    problems, evaluate, baselines = tasks.problems, config.evaluate, config.baselines
    counts = evaluation.sample_counts(evaluate, baseline=False)
    amounts = Amounts(
        prompts=len(problems["train"]) * config.sample.samples_per_prompt,
        human=sum(bool(problem.solution.strip()) for problem in problems["train"]),
        panels=sum(len(problems[panel]) * count for panel, count in counts.items()),
        probe=sum(min(cliff.TOKENS + 1, length) for length in lengths),
    )
    if not config.has_baselines:
        return amounts
    points = len(sweeping.grid(baselines, config.sample, evaluate))
    untouched = len(evaluation.panel_problems(evaluate, finals.PANEL))
    return replace(
        amounts,
        swept=points * len(problems[sweeping.PANEL]) * baselines.samples_per_problem,
        final=untouched * evaluate.counts[finals.PANEL] * evaluate.baseline_multiplier,
    )


def calibrate(
    bench: Workbench, prompts: Sequence[Problem], texts: Sequence[dict[str, Any]], scratch: Path
) -> Calibration:
    """What the stages take at small scale.

    Args:
        bench: The base model of the run; its engine is not open yet.
        prompts: What is sampled from.
        texts: The reference texts, as `evaluation.reference_texts` returns them.
        scratch: Existing folder for what the stages write.
    """
    config, meter, base = bench.config, bench.meter, bench.base.path
    out = {name: scratch / name for name in ("sample", "filter", "train", "merge", "evaluate")}
    for folder in out.values():
        folder.mkdir()
    asked, measured = draws(bench, prompts)
    import pyarrow.parquet  # noqa: F401  # no part of the rate of the stage that happens to write first

    began = meter.read()
    engine = bench.engine(base)
    opened = meter.read()
    samples = sampling.draw_all(bench.drawing, asked, engine=engine, policy_round=0, out=out["sample"])
    drawn = meter.read()
    kept = filtered(config, prompts, samples, out["filter"])
    sifted = meter.read()
    import peft  # noqa: F401
    import trl  # noqa: F401

    imported = meter.read()
    rows = train(bench, prompts, kept, [text["token_ids"] for text in texts], out["train"])
    trained = meter.read()
    terms = [Term(out["train"])]
    merging.merge(config.merge.rounding, base_dir=base, terms=terms, out=out["merge"])
    effective_rank(terms)
    merged = meter.read()
    bench.release()
    probes = gate.first_look(gate.cut([text["token_ids"] for text in texts]))
    gate.measure(base, out["merge"], terms, probes, bench.device)
    gated = meter.read()
    engine = bench.engine(out["merge"])
    loaded = meter.read()
    evaluation.look(
        config.evaluate,
        config.sandbox,
        measured,
        bench.drawing,
        engine=engine,
        round_index=1,
        out=out["evaluate"],
    )
    looked = meter.read()
    evaluation.score_texts(engine, texts)
    scored = meter.read()

    steps = trained - imported
    return Calibration(
        engine_start_s=(opened - began).seconds,
        imports_s=(imported - sifted).seconds,
        sampled=Drawn(len(asked), drawn - opened),
        filter_s=(sifted - drawn).seconds,
        kept_share=len(kept) / len(asked),
        trained=Trained(
            rows,
            replace(steps, seconds=steps.busy_seconds),
            start_s=max(0.0, steps.seconds - steps.busy_seconds),
        ),
        merge_s=(merged - trained).seconds,
        gate_s=(gated - merged).seconds,
        load_s=(loaded - gated).seconds,
        evaluated=Drawn(len(measured), looked - loaded),
        scored=scored - looked,
    )


def draws(bench: Workbench, prompts: Sequence[Problem]) -> tuple[list[sampling.Draw], list[sampling.Draw]]:
    """One shard of a round's training draws and one of its panel draws, as large as the run's shards.

    Time is not proportional to the number of requests at once, so shards are not made smaller.
    """
    config = bench.config
    decoding = sampling.decoding_of(config.sample)
    samples = config.sample.samples_per_prompt
    asked = sampling.plan(bench.drawing, prompts, samples, decoding=decoding, round_index=1)
    counts = evaluation.sample_counts(config.evaluate, baseline=False)
    measured = evaluation.plan_panels(config.evaluate, bench.drawing, counts=counts, round_index=1)
    first, second = (
        spread(found, len(next(sampling.split_shards(range(len(found)), config.sample.shard_size))))
        for found in (asked, measured)
    )
    return first, second


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items in their order, evenly spaced; all where there are no more."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def filtered(
    config: RunConfig, prompts: Sequence[Problem], samples: Sequence[Sample], out: Path
) -> list[Sample]:
    """The samples that are kept, with their code run where the filters ask for it, as stage `filter` does."""
    told = judging.for_filters(config.filter.filters, samples, prompts, config.sandbox)
    filtering.run(config.filter, samples, out=out, **told)
    return read_rows(out / filtering.KEPT, Sample)


def train(
    bench: Workbench,
    prompts: Sequence[Problem],
    kept: Sequence[Sample],
    texts: Sequence[Sequence[int]],
    out: Path,
) -> int:
    """Train `STEPS` steps on some of what was kept; how many rows that took, repetitions counted."""
    config, seed = bench.config.train, bench.config.sample.seed
    own = spread(kept, STEPS * config.batch_size)
    human = mixing.human_rows(
        prompts,
        mixing.human_count(config.human_share, len(own)),
        renderer=bench.renderer,
        stop_token_ids=bench.stop_token_ids,
        seed=derive_seed(seed, 1, "human"),
    )
    rows = mixing.Mixture(own, human)
    epochs = math.ceil(STEPS * config.batch_size / len(rows))
    steps = math.ceil(epochs * len(rows) / config.batch_size)
    # One probe, before the first step: those between steps are reckoned by `training_work`.
    small = config.model_copy(
        update={"epochs": epochs, "probe_every": (steps + 1) * bool(config.probe_every)}
    )
    bench.release()
    with bench.training(rows, epochs, steps) as task:
        training.train(
            small,
            model_dir=bench.base.path,
            rows=rows,
            seed=derive_seed(seed, 1, "train"),
            device=bench.device,
            out=out,
            on_step=lambda step, total, loss: task.advance(),
            probe=texts,
            ends_on_cliff=False,
        )
    return epochs * len(rows)


def multiplied(config: RunConfig, found: Calibration, amounts: Amounts, size: ModelSize) -> Works:
    """The work of every stage of every round, from what a little of it took."""
    load = Work(seconds=found.load_s)
    drawn = amounts.prompts / found.sampled.samples
    panels = _scaled(found.evaluated, amounts.panels) + found.scored
    baseline = _scaled(found.evaluated, amounts.panels * config.evaluate.baseline_multiplier) + found.scored
    works = {(0, "evaluate"): Work(seconds=found.engine_start_s) + baseline}
    for n in range(1, config.rounds + 1):
        swaps = n > 1 and config.sample.policy == "base"  # else the last evaluation left the weights in place
        works[n, "sample"] = _scaled(found.sampled, amounts.prompts) + (load if swaps else Work())
        works[n, "filter"] = Work(seconds=drawn * found.filter_s)
        trained = training_work(config.train, found, rows_trained(config, found, amounts, n), amounts, size)
        works[n, "train"] = trained + Work(seconds=found.imports_s if n == 1 else 0.0)
        works[n, "merge"] = Work(seconds=found.merge_s + found.gate_s)
        works[n, "evaluate"] = load + panels
        for stage in SEEDS[: config.monitor.seed_trainings] if n == 1 else ():
            works[n, stage] = trained + Work(seconds=found.merge_s) + load + panels
    return works


def afterwards(config: RunConfig, found: Calibration, amounts: Amounts) -> Works:
    """The work once rounds are done, if one beat the base: sweeps and final figures of both, at most.

    A final figure has three arms. The base has two more, a second draw and a revision of each answer.
    """
    if not amounts.swept:
        return {}
    load = Work(seconds=found.load_s)
    works: Works = {}
    for n, arms in ((0, 5), (config.rounds, 3)):
        works[n, "sweep"] = load + _scaled(found.evaluated, amounts.swept)
        works[n, "final"] = _scaled(found.evaluated, arms * amounts.final)
    return works


def rows_trained(config: RunConfig, found: Calibration, amounts: Amounts, n: int) -> int:
    """Rows of one pass of round n's training."""
    kept = round(found.kept_share * amounts.prompts)
    sampled = n * kept if config.train.data_policy == "accumulate" else kept
    return sampled + min(amounts.human, mixing.human_count(config.train.human_share, sampled))


def training_work(
    config: TrainConfig, found: Calibration, rows: int, amounts: Amounts, size: ModelSize
) -> Work:
    """The work of one training.

    A probe is a forward pass, so its tokens are taken to last as long as a trained token's share of forward
    passes: 2 N of the 4 N + 6 n operations of `costs.flops`.
    """
    steps = found.trained.steps
    probes = training.step_count(config, rows) // config.probe_every if config.probe_every else 0
    per_operation = steps.busy_seconds / costs.flops(steps, size)
    probing = probes * costs.flops(Work(scored_tokens=amounts.probe), size) * per_operation
    own = _scaled(Drawn(found.trained.rows, steps), rows * config.epochs)
    return own + Work(seconds=found.trained.start_s + probing, busy_seconds=probing)


def _scaled(drawn: Drawn, samples: float) -> Work:
    """The same work for another number of samples."""
    factor = samples / drawn.samples
    scaled = {field.name: factor * getattr(drawn.work, field.name) for field in fields(Work)}
    counts = {name: round(value) for name, value in scaled.items() if not name.endswith("seconds")}
    return Work(**(scaled | counts))


def memory_bytes(subject: Subject) -> dict[str, int]:
    """Bytes at the peak of each step on the device that it runs on, by `room.device_bytes`."""
    config = subject.config
    lengths = [row.prompt + row.new for row in subject.longest]
    return room.device_bytes(
        subject.sizes,
        engine=subject.bench.engine_name,
        on_gpu=subject.bench.device != "cpu",
        trained=lengths[0] * config.train.micro_batch,
        answered=max(lengths),
        max_model_len=config.engine.max_model_len,
    )


def show(found: dict[str, Any], console: Console) -> None:
    """Print a prediction as tables."""
    ledger, rounds = found["ledger"], found["rounds"]
    console.print(
        f"{found['model']}, {found['dtype']}, {found['engine']} on {found['device']}: {rounds} rounds in "
        f"about {_minutes(ledger['total']['seconds'])}, {ledger['ratio_to_one_round']:.1f} times one "
        "inference pass plus one fine-tune",
        markup=False,
    )
    console.print(costs.table(ledger, f"What {rounds} rounds will cost, about"))
    by_round = {row["round"]: _minutes(row["seconds"]) for row in ledger["rounds"]}
    console.print(", ".join(f"round {n} {by_round[n]}" for n in sorted({0, 1, rounds})))
    if found["afterwards"]:
        console.print(costs.table(found["afterwards"], "Then, if a round beat the base, at most about"))
    console.print(_measured(found["calibration"]))
    for finding in found["findings"]:
        console.print(f"{finding['check']} ({finding['verdict']}): {finding['detail']}", markup=False)
    disk = found["disk_bytes"]
    console.print(
        f"peak memory about {gib(found['memory_bytes']['peak'])}; disk at most "
        f"{gib(disk['checkpoints'])} in checkpoints/, {gib(disk['rounds'])} in rounds/"
    )
    for line in found["left_out"]:
        console.print(f"not in it: {line}", markup=False)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:,.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _measured(found: dict[str, Any]) -> Table:
    """What the calibration measured: what is paid once, and what for each sample or token."""
    table = Table(title="What the calibration measured", title_justify="left")
    table.add_column("what")
    table.add_column("seconds", justify="right")
    table.add_column("paid")
    steps = found["trained"]["steps"]
    tokens = steps["trained_tokens"] + steps["trained_prompt_tokens"]
    rows = [
        ("engine start", found["engine_start_s"], "once"),
        ("the trainer's libraries", found["imports_s"], "once"),
        ("a training's start and end", found["trained"]["start_s"], "each training"),
        ("merge", found["merge_s"], "each round"),
        ("merge gate", found["gate_s"], "each round"),
        ("new weights into the engine", found["load_s"], "each round"),
        ("reference texts", found["scored"]["seconds"], "each evaluation"),
        ("sampling", found["sampled"]["work"]["seconds"] / found["sampled"]["samples"], "each sample"),
        ("evaluating", found["evaluated"]["work"]["seconds"] / found["evaluated"]["samples"], "each sample"),
        ("training", 1000 * steps["seconds"] / tokens, "1,000 tokens, prompts included"),
    ]
    for what, seconds, paid in rows:
        table.add_row(what, f"{seconds:.2f}", paid)
    return table
