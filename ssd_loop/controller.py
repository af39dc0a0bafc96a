"""THE LOOP: sample, filter, train, merge, evaluate, monitor, and again. Read `run_rounds` first.

Every stage is finished or absent on disk (`ssd_loop.store`), so running again is resuming: finished stages
are skipped, and the first missing one is where work goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssd_loop import (
    durable,
    evaluation,
    filtering,
    judging,
    mixing,
    progress,
    sampling,
    store,
    training,
    weights,
)
from ssd_loop.composition import COMPOSITION
from ssd_loop.monitors import rule
from ssd_loop.place import BEST, CONTINUED, Place, round_name
from ssd_loop.prompts import content_input
from ssd_loop.records import Sample, derive_seed, read_rows
from ssd_loop.running import Run, step
from ssd_loop.store import Finished, Input, Metrics
from ssd_loop.weights import Model, base_model, merge
from ssd_loop.workbench import Workbench


def run_rounds(run: Run) -> rule.Decision | None:
    """Repeat self-distillation until the rounds are done (None) or the monitors stop it (their decision)."""
    base = base_model(run)
    model, kept, history = begin(run)
    decision = start_decision(run, history)
    if decision and obeys(run, decision):
        return decision
    for n in range(run.start + 1, run.config.rounds + 1):
        samples = sample(run, n, base if run.config.sample.policy == "base" else model)
        kept.append(filter_samples(run, n, samples))
        begun = base if run.config.train.start_from == "base" else model
        adapter = train(run, n, begun, kept)
        model = merge(run, n, begun, adapter, history[0])
        history.append(evaluate(run, n, model, history[0]))
        decision = monitor(run, n, history)
        if obeys(run, decision):
            return decision
    return None


def begin(run: Run) -> tuple[Model, list[Finished], list[Finished]]:
    """Weights, kept samples and evaluations that the first round of this run goes on from."""
    if run.begins == "base":
        return base_model(run), [], [evaluate(run, 0, base_model(run), None)]
    weights.write_composition(run, 0, ())
    taken = range(run.start + 1)
    baseline = store.finished(run.place.stage(0, "evaluate")) or evaluate(run, 0, base_model(run), None)
    run.tracker.log(0, "evaluate", baseline.manifest.metrics)
    model = weights.handed_over(run, run.start, baseline)
    kept = [store.finished(run.place.stage(n, "filter")) for n in taken[1:]]
    # A round without a composition cannot be the best: there is no telling what its weights are.
    earlier = [n for n in taken[1:-1] if (run.place.checkpoint(n) / COMPOSITION).is_file()]
    history = [store.finished(run.place.stage(n, "evaluate")) for n in earlier]
    measured = [baseline, *[done for done in history if done]]
    if run.start:
        done = store.finished(run.place.stage(run.start, "evaluate"))
        measured.append(done or evaluate(run, run.start, model, baseline))
    return model, [done for done in kept if done], measured


def start_decision(run: Run, history: Sequence[Finished]) -> rule.Decision | None:
    """The decision after the round of its own that a run goes on from; made now if it was cut short."""
    if run.begins != "own round" or run.start == 0:
        return None
    if done := store.finished(run.place.stage(run.start, "monitor")):
        return rule.read_decision(store.checked(done))
    return monitor(run, run.start, history)


def sample(run: Run, n: int, model: Model) -> Finished:
    """Draw completions of the training prompts."""

    def work(out: Path) -> Metrics:
        return sampling.run(
            run.config.sample,
            run.prompts,
            engine=run.bench.engine(weights.ready(run, model)),
            renderer=run.bench.renderer,
            stop_token_ids=run.bench.stop_token_ids,
            round_index=n,
            policy_round=model.round,
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


def train(run: Run, n: int, begun: Model, kept: Sequence[Finished]) -> Finished:
    """Fine-tune an adapter on `begun` with the kept samples, the current round's last."""
    config, seed = run.config.train, run.config.sample.seed
    used = kept[-1:] if config.data_policy == "replace" else kept

    def work(out: Path) -> Metrics:
        rounds = [read_rows(store.checked(done) / filtering.KEPT, Sample) for done in used]
        samples = mixing.chosen(config.data_policy, rounds, derive_seed(seed, n, "subsample"))
        rows = [training.TrainingRow(row.prompt_token_ids, row.token_ids) for row in samples]
        human = human_rows(run, n, len(rows))
        folder = weights.ready(run, begun)
        run.bench.release()
        steps = training.step_count(config, len(rows) + len(human))
        with progress.task("train", steps, "steps") as task:
            metrics: Metrics = training.train(
                config,
                model_dir=folder,
                rows=rows + human,
                seed=derive_seed(seed, n, "train"),
                device=run.bench.device,
                out=out,
                on_step=lambda step, total, loss: task.advance(),
            )
        return metrics | {"rows_sampled": len(rows), "rows_human": len(human)}

    inputs = {"model": begun.source, "kept": kept[-1].as_input}
    inputs |= {f"kept_{done.manifest.round:03d}": done.as_input for done in used[:-1]}
    settings = config.result_settings() | {"seed": seed}
    if config.human_share:
        inputs["prompts"] = content_input(run.prompts)
        settings |= templating(run.bench)
    return step(run, n, "train", training.STAGE_VERSION, settings, inputs, work)


def human_rows(run: Run, n: int, sampled: int) -> list[training.TrainingRow]:
    """The round's human-written rows, as many as the settings ask for beside so many sampled ones."""
    wanted = mixing.human_count(run.config.train.human_share, sampled)
    rows = mixing.human_rows(
        run.prompts,
        wanted,
        renderer=run.bench.renderer,
        stop_token_ids=run.bench.stop_token_ids,
        seed=derive_seed(run.config.sample.seed, n, "human"),
    )
    if len(rows) < wanted:
        progress.say(f"warning: {wanted} human-written rows are asked for and the prompts have {len(rows)}")
    return rows


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


def measuring(
    bench: Workbench,
    n: int,
    model: Callable[[], Path],
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
            engine=bench.engine(model()),
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
    """Decide whether another round is worth it, point `best` at the best one and prune old weights."""

    def work(out: Path) -> Metrics:
        reports: list[Mapping[str, Any] | None] = [None] * (n + 1)
        for done in history:
            reports[done.manifest.round] = evaluation.read_report(store.checked(done))
        decision = rule.decide(reports, run.config.monitor)
        durable.write_json(out / rule.DECISION, decision.to_json())
        return rule.summary(decision)

    inputs = {f"evaluate_{done.manifest.round:03d}": done.as_input for done in history}
    settings = run.config.monitor.result_settings()
    done = step(run, n, "monitor", rule.STAGE_VERSION, settings, inputs, work)
    decision = rule.read_decision(store.checked(done))
    if not run.place.stage(n + 1, "sample").exists():  # the last decision so far, not one gone over again
        best = decision.best_round
        if best <= run.start:
            weights.ready(run, weights.handed_over(run, best, history[0]))  # may be a composition only
        durable.point_link(run.place.weights / BEST, round_name(best))
        weights.prune(run, best)
    return decision


def obeys(run: Run, decision: rule.Decision) -> bool:
    """Whether this decision ends the run; if it is passed over, that is noted, and resuming passes it too."""
    if decision.verdict != "stop" or run.config.monitor.action != "stop":
        return False
    passed = passed_stops(run.place)
    if decision.round in passed:
        return False
    if run.goes_past_stops:
        durable.write_sealed(run.place.folder / CONTINUED, {"past_stops": sorted({*passed, decision.round})})
        progress.say(f"round {decision.round}: the monitors say stop ({decision.kind}); told to go on")
        return False
    return True


def passed_stops(place: Place) -> list[int]:
    """The rounds whose stop was passed over on request."""
    path = place.folder / CONTINUED
    if not path.is_file():
        return []
    found: list[int] = durable.read_sealed(path, "delete it to obey all stops")[0]["past_stops"]
    return found


def drawing_settings(bench: Workbench) -> dict[str, Any]:
    """What else decides which tokens are drawn: engine, precision and what the chat template is given."""
    return {"engine": bench.engine_name, "dtype": bench.base.dtype} | templating(bench)


def templating(bench: Workbench) -> dict[str, Any]:
    """What the chat template is given besides the task."""
    model = bench.config.model
    return {"system_prompt": model.system_prompt} | model.template_settings()
