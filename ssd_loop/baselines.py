"""What a run bought: base and best round over decoding settings, and on the panel nothing was tuned on.

Done once a run ends. Settings are chosen on the held-out problems (stage `sweep`), the figure that is
reported comes from the panel `report` (stage `final`).
"""

from __future__ import annotations

from pathlib import Path

from ssd_loop import evaluation, exporting, finals, progress, store, sweeping, weights
from ssd_loop.finals import Arm
from ssd_loop.measuring import evaluation_settings, sweep_work
from ssd_loop.running import Run, step
from ssd_loop.sampling import Decoding, decoding_of
from ssd_loop.store import Finished, Metrics
from ssd_loop.weights import Model


def conclude(run: Run) -> None:
    """Compare the best round with the base, where the settings ask for it and a round beat the base."""
    if not run.config.has_baselines:
        return
    best = run.place.best
    if not best:
        progress.say("no round beat the base: there is no gain to compare with other decoding settings")
        return
    baseline = store.finished(run.place.stage(0, "evaluate"))
    assert baseline is not None  # no round is the best without it
    for model in (weights.base_model(run), weights.handed_over(run, best, baseline)):
        final(run, model, sweep(run, model))
    exporting.write_card(run.place, best)


def sweep(run: Run, model: Model) -> Finished:
    """Measure weights over the grid."""
    config = run.config

    def work(out: Path) -> Metrics:
        return sweep_work(run.bench, weights.ready(run, model), model.round, out)

    inputs = {"model": model.source, **evaluation.problem_inputs(config.evaluate, [sweeping.PANEL])}
    settings = evaluation_settings(run.bench) | sweeping.settings(config)
    return step(run, model.round, "sweep", sweeping.STAGE_VERSION, settings, inputs, work)


def final(run: Run, model: Model, swept: Finished) -> Finished:
    """Measure weights on the untouched panel, at the settings that did best in their own sweep."""
    config = run.config
    top = sweeping.best(sweeping.read(store.checked(swept))["points"])
    assert top is not None  # answers are run, or there is no sweep
    arms: dict[Arm, Decoding] = {
        "as measured": decoding_of(config.evaluate),
        "as sampled": sweeping.as_sampled(config.sample, config.evaluate),
        "best decoding": sweeping.point_decoding(top),
    }
    samples = config.evaluate.counts[finals.PANEL] * config.evaluate.baseline_multiplier
    wanted = finals.Plan(arms, samples, model.round == 0, config.engine.max_model_len)

    def work(out: Path) -> Metrics:
        return finals.run(
            wanted,
            config.evaluate,
            config.sandbox,
            run.bench.drawing,
            engine=run.bench.engine(weights.ready(run, model)),
            round_index=model.round,
            out=out,
        )

    inputs = {"model": model.source, "sweep": swept.as_input}
    inputs |= evaluation.problem_inputs(config.evaluate, [finals.PANEL])
    settings = evaluation_settings(run.bench) | wanted.settings()
    return step(run, model.round, "final", finals.STAGE_VERSION, settings, inputs, work)
