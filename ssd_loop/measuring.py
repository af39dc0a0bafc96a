"""Measuring weights: the evaluation of every round, and a second look where the monitors ask for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ssd_loop import evaluation, monitoring, store, sweeping, weights
from ssd_loop.config import PanelName
from ssd_loop.running import Run, step
from ssd_loop.store import Finished, Input, Metrics
from ssd_loop.weights import Model
from ssd_loop.workbench import Workbench


def evaluate(run: Run, n: int, model: Model, baseline: Finished | None) -> Finished:
    """Measure the round's weights; round 0 with more samples."""
    config = run.config.evaluate
    counts = evaluation.sample_counts(config, baseline=baseline is None)
    work = measuring(run.bench, n, lambda: weights.ready(run, model), counts, baseline)
    inputs = {"model": model.source, **evaluation.problem_inputs(config)}
    if baseline:
        inputs["baseline"] = baseline.as_input
    else:
        weights.write_composition(run, n, ())
    settings = evaluation_settings(run.bench)
    return step(run, n, "evaluate", evaluation.STAGE_VERSION, settings, inputs, work)


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
        work=measuring(bench, 0, lambda: bench.base.path, counts, None),
    )


def sweep_alone(bench: Workbench, base: Input, folder: Path) -> Finished:
    """Measure the base model outside any run over the grid of decoding settings."""
    return store.step(
        folder,
        stage="sweep",
        round_index=0,
        version=sweeping.STAGE_VERSION,
        settings=evaluation_settings(bench) | sweeping.settings(bench.config),
        inputs={"model": base, **evaluation.problem_inputs(bench.config.evaluate, [sweeping.PANEL])},
        work=lambda out: sweep_work(bench, bench.base.path, 0, out),
    )


def sweep_work(bench: Workbench, model: Path, n: int, out: Path) -> Metrics:
    """The work of one sweep."""
    config = bench.config
    return sweeping.run(
        sweeping.grid(config.baselines, config.sample, config.evaluate),
        config.baselines.samples_per_problem,
        config.evaluate,
        config.sandbox,
        bench.drawing,
        engine=bench.engine(model),
        round_index=n,
        out=out,
    )


def second_look(
    run: Run, n: int, model: Model, folders: monitoring.Folders, baseline: Finished
) -> Finished | None:
    """More samples of the panels where a monitor is suspicious; None where none is."""
    config = run.config
    if store.finished(run.place.stage(n, "monitor")):  # decided already, with this look or without
        return store.finished(run.place.stage(n, "second_look"))
    panels = monitoring.asks_again(folders, config)
    if not panels:
        return None
    counts = config.evaluate.counts

    def work(out: Path) -> Metrics:
        draws = evaluation.plan_panels(
            config.evaluate,
            run.bench.drawing,
            counts={panel: config.monitor.second_look * counts[panel] for panel in panels},
            first={panel: counts[panel] for panel in panels},
            round_index=n,
        )
        samples, results, _ = evaluation.look(
            config.evaluate,
            config.sandbox,
            draws,
            run.bench.drawing,
            engine=run.bench.engine(weights.ready(run, model)),
            round_index=n,
            out=out,
        )
        return evaluation.look_metrics(samples, results)

    inputs = {"model": model.source, "baseline": baseline.as_input}
    inputs |= evaluation.problem_inputs(config.evaluate, panels)
    settings = evaluation_settings(run.bench) | {"panels": panels, "times": config.monitor.second_look}
    return step(run, n, "second_look", evaluation.LOOK_VERSION, settings, inputs, work)


def measuring(
    bench: Workbench,
    n: int,
    model: Callable[[], Path],
    counts: Mapping[PanelName, int],
    baseline: Finished | None,
) -> Callable[[Path], Metrics]:
    """The work of one evaluation."""
    config = bench.config

    def work(out: Path) -> Metrics:
        draws = evaluation.plan_panels(config.evaluate, bench.drawing, counts=counts, round_index=n)
        return evaluation.run(
            config.evaluate,
            config.sandbox,
            draws,
            bench.drawing,
            engine=bench.engine(model()),
            round_index=n,
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


def drawing_settings(bench: Workbench) -> dict[str, Any]:
    """What else decides which tokens are drawn: engine, precision and what the chat template is given."""
    return {"engine": bench.engine_name, "dtype": bench.base.dtype} | templating(bench)


def templating(bench: Workbench) -> dict[str, Any]:
    """What the chat template is given besides the task."""
    model = bench.config.model
    return {"system_prompt": model.system_prompt} | model.template_settings()
