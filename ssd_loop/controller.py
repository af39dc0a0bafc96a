"""THE LOOP: sample, filter, train, merge, evaluate, monitor, and again. Read `run_rounds` first.

Every stage is finished or absent on disk (`ssd_loop.store`), so running again is resuming: finished stages
are skipped, and the first missing one is where work goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ssd_loop import (
    costs,
    evaluation,
    filtering,
    judging,
    merging,
    progress,
    sampling,
    store,
    training,
)
from ssd_loop.config import RunConfig
from ssd_loop.monitors import rule
from ssd_loop.problems import Problem
from ssd_loop.prompts import content_input
from ssd_loop.records import Sample, derive_seed, read_rows
from ssd_loop.store import Finished, Input, Metrics
from ssd_loop.tracking import Tracker
from ssd_loop.workbench import Workbench

BEST, COMPOSITION, EVENTS = "best", "composition.json", "events.jsonl"


@dataclass(frozen=True)
class Run:
    """One run: where it is kept and what it was asked to be."""

    name: str
    config: RunConfig
    base: Input
    prompts: tuple[Problem, ...]
    bench: Workbench
    tracker: Tracker

    @property
    def folder(self) -> Path:
        """What the rounds measured and sampled."""
        return Path("rounds") / self.name

    @property
    def weights(self) -> Path:
        """Adapters and merged models."""
        return Path("checkpoints") / self.name


@dataclass(frozen=True)
class Model:
    """Weights of one round: the folder to load, and how manifests name it."""

    path: Path
    source: Input
    finished: Finished | None = None

    def folder(self) -> Path:
        """The folder, its content checked once per process."""
        return store.checked(self.finished) if self.finished else self.path


def run_rounds(run: Run) -> rule.Decision | None:
    """Repeat self-distillation until the rounds are done or the monitors stop it."""
    model = Model(run.bench.base.path, run.base)
    adapters: list[Finished] = []
    history = [evaluate(run, 0, model, None)]
    decision = None
    for n in range(1, run.config.rounds + 1):
        samples = sample(run, n, model)
        kept = filter_samples(run, n, samples)
        adapters.append(train(run, n, model, kept))
        model = merge(run, n, adapters)
        history.append(evaluate(run, n, model, history[0]))
        decision = monitor(run, n, history)
        if obeys(run.config, decision):
            break
    return decision


def sample(run: Run, n: int, model: Model) -> Finished:
    """Draw completions of the training prompts from the previous round's weights."""

    def work(out: Path) -> Metrics:
        return sampling.run(
            run.config.sample,
            run.prompts,
            engine=run.bench.engine(model.folder()),
            renderer=run.bench.renderer,
            stop_token_ids=run.bench.stop_token_ids,
            round_index=n,
            out=out,
        )

    inputs = {"model": model.source, "prompts": content_input(run.prompts)}
    settings = run.config.sample.result_settings() | drawing_settings(run.bench)
    return step(run, n, "sample", sampling.STAGE_VERSION, settings, inputs, work)


def filter_samples(run: Run, n: int, samples: Finished) -> Finished:
    """Drop the samples that are not trained on."""
    config, sandbox = run.config.filter, run.config.sandbox
    executes = "does_not_run" in config.filters

    def work(out: Path) -> Metrics:
        rows = read_rows(store.checked(samples) / sampling.SAMPLES, Sample)
        runs = None
        if executes:
            runs = judging.running(
                rows,
                {prompt.id: prompt for prompt in run.prompts},
                limits=judging.limits_of(sandbox),
                workers=sandbox.workers,
            )
        return filtering.run(config, rows, out=out, runs=runs)

    inputs, settings = {"samples": samples.as_input}, config.result_settings()
    if executes:
        inputs["prompts"] = content_input(run.prompts)
        settings["sandbox"] = sandbox.result_settings()
    return step(run, n, "filter", filtering.STAGE_VERSION, settings, inputs, work)


def train(run: Run, n: int, model: Model, kept: Finished) -> Finished:
    """Fine-tune an adapter on the kept samples, on the weights that drew them."""

    def work(out: Path) -> Metrics:
        rows = [
            training.TrainingRow(row.prompt_token_ids, row.token_ids)
            for row in read_rows(store.checked(kept) / filtering.KEPT, Sample)
        ]
        folder = model.folder()
        run.bench.release()
        with progress.task("train", training.step_count(run.config.train, len(rows)), "steps") as task:
            return training.train(
                run.config.train,
                model_dir=folder,
                rows=rows,
                seed=derive_seed(run.config.sample.seed, n, "train"),
                device=run.bench.device,
                out=out,
                on_step=lambda step, total, loss: task.advance(),
            )

    inputs = {"model": model.source, "kept": kept.as_input}
    settings = run.config.train.result_settings() | {"seed": run.config.sample.seed}
    return step(run, n, "train", training.STAGE_VERSION, settings, inputs, work)


def merge(run: Run, n: int, adapters: Sequence[Finished]) -> Model:
    """Add all adapters so far to the pristine base and round once."""
    settings = run.config.merge.result_settings()

    def work(out: Path) -> Metrics:
        files = len(list(run.bench.base.path.glob("*.safetensors")))
        with progress.task("merge", files, "files") as task:
            return merging.merge(
                run.config.merge,
                base_dir=run.bench.base.path,
                adapters=[store.checked(adapter) for adapter in adapters],
                out=out,
                on_shard=lambda *_: task.advance(),
            )

    inputs = {"base": run.base} | {
        f"adapter_{index:03d}": adapter.as_input for index, adapter in enumerate(adapters, 1)
    }
    done = step(run, n, "merge", merging.STAGE_VERSION, settings, inputs, work)
    write_composition(run, n, adapters)
    return Model(done.path, done.as_input, done)


def write_composition(run: Run, n: int, adapters: Sequence[Finished]) -> None:
    """Write what the round's weights are: the base plus the adapters of all rounds so far."""
    content = merging.composition(
        title=run.bench.base.title,
        content_hash=run.base.fingerprint,
        rounding=run.config.merge.rounding,
        adapters=[
            (f"../round_{index:03d}/adapter", adapter.manifest.outputs[training.WEIGHTS]["sha256"])
            for index, adapter in enumerate(adapters, 1)
        ],
    )
    store.write_json(round_folder(run.weights, n) / COMPOSITION, content)


def evaluate(run: Run, n: int, model: Model, baseline: Finished | None) -> Finished:
    """Measure the round's weights; round 0 with more samples."""
    config = run.config.evaluate
    counts = evaluation.sample_counts(config, baseline=baseline is None)
    work = measuring(run.bench, n, model, counts, baseline)
    inputs = {"model": model.source, **evaluation.problem_inputs(config)}
    if baseline:
        inputs["baseline"] = baseline.as_input
    settings = evaluation_settings(run.bench)
    done = step(run, n, "evaluate", evaluation.STAGE_VERSION, settings, inputs, work)
    if baseline is None:
        write_composition(run, n, [])
    return done


def evaluate_alone(bench: Workbench, base: Input, folder: Path) -> Finished:
    """Measure the base model outside any run, with the sample counts of a later round."""
    counts = evaluation.sample_counts(bench.config.evaluate, baseline=False)
    return store.step(
        folder,
        stage="evaluate",
        round_index=0,
        version=evaluation.STAGE_VERSION,
        settings=evaluation_settings(bench),
        inputs={"model": base, **evaluation.problem_inputs(bench.config.evaluate)},
        work=measuring(bench, 0, Model(bench.base.path, base), counts, None),
    )


def measuring(
    bench: Workbench,
    n: int,
    model: Model,
    counts: Mapping[str, int],
    baseline: Finished | None,
) -> Callable[[Path], Metrics]:
    """The work of one evaluation."""
    config = bench.config

    def work(out: Path) -> Metrics:
        draws = evaluation.plan_panels(
            config.evaluate,
            counts=counts,
            renderer=bench.renderer,
            stop_token_ids=bench.stop_token_ids,
            run_seed=config.sample.seed,
            round_index=n,
        )
        return evaluation.run(
            config.evaluate,
            config.sandbox,
            draws,
            engine=bench.engine(model.folder()),
            renderer=bench.renderer,
            round_index=n,
            shard_size=config.sample.shard_size,
            reference=store.checked(baseline) if baseline else None,
            out=out,
        )

    return work


def evaluation_settings(bench: Workbench) -> dict[str, Any]:
    """The settings that decide an evaluation's result."""
    config = bench.config
    more = {
        "sandbox": config.sandbox.result_settings(),
        "seed": config.sample.seed,
        "shard_size": config.sample.shard_size,
    }
    return config.evaluate.result_settings() | drawing_settings(bench) | more


def monitor(run: Run, n: int, history: Sequence[Finished]) -> rule.Decision:
    """Decide whether another round is worth it, and point `best` at the best one so far."""

    def work(out: Path) -> Metrics:
        reports = [evaluation.read_report(store.checked(done)) for done in history]
        decision = rule.decide(reports, run.config.monitor)
        store.write_json(out / rule.DECISION, decision.to_json())
        return rule.summary(decision)

    inputs = {f"evaluate_{index:03d}": done.as_input for index, done in enumerate(history)}
    settings = run.config.monitor.result_settings()
    done = step(run, n, "monitor", rule.STAGE_VERSION, settings, inputs, work)
    decision = rule.read_decision(store.checked(done))
    if not stage_folder(run, n + 1, "sample").exists():  # the last decision so far, not one gone over again
        store.point_link(run.weights / BEST, f"round_{decision.best_round:03d}")
    return decision


def obeys(config: RunConfig, decision: rule.Decision) -> bool:
    """Whether this decision ends the run."""
    return decision.verdict == "stop" and config.monitor.action == "stop"


def drawing_settings(bench: Workbench) -> dict[str, Any]:
    """What else decides which tokens are drawn: engine, precision and the system message."""
    return {
        "engine": bench.engine_name,
        "dtype": bench.base.dtype,
        "system_prompt": bench.config.model.system_prompt,
    }


def round_folder(root: Path, n: int) -> Path:
    """The folder of one round."""
    return root / f"round_{n:03d}"


def stage_folder(run: Run, n: int, stage: str) -> Path:
    """Where a stage publishes: weights under checkpoints/, everything else under rounds/."""
    names = {"train": "adapter", "merge": "merged"}
    root = run.weights if stage in names else run.folder
    return round_folder(root, n) / names.get(stage, stage)


def step(
    run: Run,
    n: int,
    stage: str,
    version: int,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Input],
    work: Callable[[Path], Metrics],
) -> Finished:
    """One stage of one round: skipped if finished, else run, timed and tracked."""

    def announced(out: Path) -> Metrics:
        progress.say(f"round {n} {stage}")
        log_event(run, n, stage, "started")
        with costs.timed(run.folder, n, stage) as cost:
            metrics = work(out)
            cost.tokens = costs.tokens_of(metrics)
        log_event(run, n, stage, "finished")
        return metrics

    done = store.step(
        stage_folder(run, n, stage),
        stage=stage,
        round_index=n,
        version=version,
        settings=settings,
        inputs=inputs,
        work=announced,
    )
    run.tracker.log(n, stage, done.manifest.metrics)
    return done


def log_event(run: Run, n: int, stage: str, event: str) -> None:
    """Add a line to the run's log, which people read and nothing decides on."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    row = {"time": now, "round": n, "stage": stage, "event": event}
    store.append_jsonl(run.folder / EVENTS, row)
