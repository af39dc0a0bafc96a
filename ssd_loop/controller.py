"""THE LOOP: sample, filter, train, merge, evaluate, monitor, and again. Read `run_rounds` first.

Every stage is finished or absent on disk (`ssd_loop.store`), so running again is resuming: finished stages
are skipped, and the first missing one is where work goes on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ssd_loop import evaluation, filtering, judging, mixing, progress, sampling, store, training, weights
from ssd_loop.composition import COMPOSITION
from ssd_loop.config import EXECUTING
from ssd_loop.lora import Term
from ssd_loop.measuring import drawing_settings, evaluate, evaluation_settings, measuring, templating
from ssd_loop.monitors.decision import Decision
from ssd_loop.place import SEEDS
from ssd_loop.prompts import content_input, varied
from ssd_loop.records import Sample, Stored, derive_seed
from ssd_loop.running import Run, step
from ssd_loop.store import Finished, Metrics
from ssd_loop.training_rows import TrainingRow
from ssd_loop.verdicts import asked_since, discard, earlier_decisions, monitor, obeys, remedied
from ssd_loop.weights import Model, base_model, merge


def run_rounds(run: Run) -> Decision | None:
    """Repeat self-distillation until the rounds are done (None) or the monitors stop it (their decision)."""
    base = base_model(run)
    model, kept, history = begin(run)
    decisions = earlier_decisions(run)
    if decisions and obeys(run, decisions[-1]):
        return decisions[-1]
    if run.start < run.config.rounds:
        model = remedied(run, model, decisions, history[0])
    for n in range(run.start + 1, run.config.rounds + 1):
        samples = sample(run, n, base if run.config.sample.policy == "base" else model, decisions)
        kept.append(filter_samples(run, n, samples))
        begun = base if run.config.train.start_from == "base" else model
        adapter = train(run, n, begun, kept, history[0], decisions)
        if "cliff_step" in adapter.manifest.metrics:
            return discard(run, n, adapter, history)
        model = merge(run, n, begun, adapter, history[0])
        history.append(evaluate(run, n, model, history[0]))
        if not decisions:
            retrain(run, n, begun, kept, history[0])
        decisions.append(monitor(run, n, model, kept[-1], history, decisions))
        if obeys(run, decisions[-1]):
            return decisions[-1]
        if n < run.config.rounds:
            model = remedied(run, model, decisions, history[0])
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


def sample(run: Run, n: int, model: Model, decisions: Sequence[Decision]) -> Finished:
    """Draw completions of the training prompts, or of variants of them."""
    remedy = asked_since(run, decisions, "variants")
    asked = varied(run.prompts, run.config.sample.seed, n) if remedy else run.prompts

    def work(out: Path) -> Metrics:
        return sampling.run(
            run.config.sample,
            asked,
            run.bench.drawing,
            engine=run.bench.engine(weights.ready(run, model)),
            round_index=n,
            policy_round=model.round,
            out=out,
        )

    inputs = {"model": model.source, "prompts": content_input(asked)}
    if remedy:
        inputs["remedy"] = remedy.as_input
    settings = run.config.sample.result_settings() | drawing_settings(run.bench)
    return step(run, n, "sample", sampling.STAGE_VERSION, settings, inputs, work)


def filter_samples(run: Run, n: int, samples: Finished) -> Finished:
    """Drop the samples that are not trained on."""
    config, sandbox = run.config.filter, run.config.sandbox
    executes = bool(set(EXECUTING) & set(config.filters))

    def work(out: Path) -> Metrics:
        rows = Stored(store.checked(samples) / sampling.SAMPLES, Sample)
        told = judging.for_filters(config.filters, rows, run.prompts, sandbox)
        return filtering.run(config, rows, out=out, **told)

    inputs, settings = {"samples": samples.as_input}, config.result_settings()
    if executes:
        inputs["prompts"] = content_input(run.prompts)
        settings["sandbox"] = sandbox.result_settings()
    return step(run, n, "filter", filtering.STAGE_VERSION, settings, inputs, work)


def train(
    run: Run,
    n: int,
    begun: Model,
    kept: Sequence[Finished],
    baseline: Finished,
    decisions: Sequence[Decision],
) -> Finished:
    """Fine-tune an adapter on `begun` with the kept samples, the current round's last."""
    config = run.config.train
    remedy = asked_since(run, decisions, "accumulate")
    policy = "accumulate" if remedy else config.data_policy
    used = kept[-1:] if policy == "replace" else kept
    probed = bool(config.probe_every)

    def work(out: Path) -> Metrics:
        texts = evaluation.read_reference(store.checked(baseline)) if probed else []
        return fit(run, n, begun, used, policy, texts, "train", out)

    inputs = {"model": begun.source, "kept": kept[-1].as_input}
    inputs |= {f"kept_{done.manifest.round:03d}": done.as_input for done in used[:-1]}
    if remedy:
        inputs["remedy"] = remedy.as_input
    if probed:
        inputs["probe"] = baseline.as_input
    settings = config.result_settings() | {"seed": run.config.sample.seed}
    if config.human_share:
        inputs["prompts"] = content_input(run.prompts)
        settings |= templating(run.bench)
    return step(run, n, "train", training.STAGE_VERSION, settings, inputs, work)


def fit(
    run: Run,
    n: int,
    begun: Model,
    used: Sequence[Finished],
    policy: mixing.Policy,
    probe: Sequence[Sequence[int]],
    purpose: str,
    out: Path,
) -> Metrics:
    """Train on the kept samples of some rounds; `purpose` names the seed."""
    config, seed = run.config.train, run.config.sample.seed
    rounds = [Stored(store.checked(done) / filtering.KEPT, Sample) for done in used]
    samples = mixing.Chosen(policy, rounds, derive_seed(seed, n, "subsample"))
    human = human_rows(run, n, len(samples))
    rows = mixing.Mixture(samples, human)
    folder = weights.ready(run, begun)
    run.bench.release()
    steps = training.step_count(config, len(rows))
    with run.bench.training(rows, config.epochs, steps) as task:
        metrics: Metrics = training.train(
            config,
            model_dir=folder,
            rows=rows,
            seed=derive_seed(seed, n, purpose),
            device=run.bench.device,
            out=out,
            on_step=lambda step, total, loss: task.advance(),
            probe=probe,
            # Not part of what the stage is: it changes nothing but in a round that is lost anyway.
            ends_on_cliff=run.config.monitor.action == "stop",
        )
    return metrics | {"rows_sampled": len(samples), "rows_human": len(human)}


def retrain(run: Run, n: int, begun: Model, kept: Sequence[Finished], baseline: Finished) -> None:
    """Train, merge and measure a round again with other seeds, as often as was paid for.

    What is kept of each is its evaluation alone: how far trainings differ that should not.
    """
    config = run.config
    used = kept[-1:] if config.train.data_policy == "replace" else kept
    for stage in SEEDS[: config.monitor.seed_trainings]:

        def work(out: Path, stage: str = stage) -> Metrics:
            with tempfile.TemporaryDirectory(dir=out, prefix="weights.") as scratch:
                adapter, merged = Path(scratch) / "adapter", Path(scratch) / "merged"
                adapter.mkdir()
                merged.mkdir()
                fit(run, n, begun, used, config.train.data_policy, (), stage, adapter)
                terms = [*weights.checked_terms(begun.terms), Term(adapter)]
                weights.write_weights(run, config.merge.rounding, terms, merged)
                counts = evaluation.sample_counts(config.evaluate, baseline=False)
                return measuring(run.bench, n, lambda: merged, counts, baseline)(out)

        inputs = {"model": begun.source, "baseline": baseline.as_input}
        inputs |= {f"kept_{done.manifest.round:03d}": done.as_input for done in used}
        inputs |= evaluation.problem_inputs(config.evaluate)
        settings = {
            "train": config.train.result_settings(),
            "rounding": config.merge.rounding,
            **evaluation_settings(run.bench),
        }
        step(run, n, stage, training.STAGE_VERSION, settings, inputs, work)


def human_rows(run: Run, n: int, sampled: int) -> list[TrainingRow]:
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
