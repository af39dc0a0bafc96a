"""The weights of every round: merged from a composition, kept or pruned, rebuilt when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssd_loop import composition, evaluation, gate, merging, progress, store
from ssd_loop.composition import Composition
from ssd_loop.errors import BadArtifactError
from ssd_loop.lora import Term, opened, stacked
from ssd_loop.monitors import health
from ssd_loop.rounding import Rounding
from ssd_loop.running import Run, step, timed
from ssd_loop.store import Finished, Input, Metrics

Terms = tuple[tuple[Finished, float], ...]  # adapters and their weights in the sum


@dataclass(frozen=True)
class Model:
    """Weights of one round: the folder to load, how manifests name it, and what it is made of.

    Attributes:
        round: Whose weights these are.
        path: The model folder.
        source: How manifests name it.
        terms: The adapters that are added to the base.
        merged: The finished merge; None for the base itself.
        rounding: How the sum was rounded.
    """

    round: int
    path: Path
    source: Input
    terms: Terms = ()
    merged: Finished | None = None
    rounding: Rounding = "stochastic"


def base_model(run: Run) -> Model:
    """The untouched model."""
    return Model(0, run.bench.base.path, run.base_input)


def merge(run: Run, n: int, begun: Model, adapter: Finished, baseline: Finished) -> Model:
    """Add a new adapter to what the weights it was trained on are made of, and round once.

    Args:
        run: The run.
        n: The round.
        begun: The weights that the adapter was trained on.
        adapter: The finished training.
        baseline: Round 0's evaluation, whose reference texts are the gate's probes.
    """
    terms = (*begun.terms, (adapter, 1.0))
    write_composition(run, n, terms)
    return _merged(run, n, terms, run.config.merge.rounding, baseline)


def write_composition(run: Run, n: int, terms: Terms) -> None:
    """Write what the round's weights are: the base and the adapters that are added to it."""
    content = Composition(
        base=run.base,
        rounding=run.config.merge.rounding,
        adapters=tuple(composition.part_of(adapter, weight) for adapter, weight in terms),
        settings=composition.settings_of(run.config, run.bench.engine_name),
        data=run.data,
    )
    composition.write(run.place.checkpoint(n), content)


def handed_over(run: Run, n: int, baseline: Finished) -> Model:
    """The weights of a round that is taken as it is; merged where only their composition is there."""
    if n == 0:
        return base_model(run)
    folder = run.place.checkpoint(n)
    content = composition.read(folder)
    terms = tuple(composition.adapters_of(folder, content))
    if done := store.finished(run.place.stage(n, "merge")):
        if composition.merged_from(done) != {adapter.as_input for adapter, _ in terms}:
            raise BadArtifactError(
                f"{folder / composition.COMPOSITION} does not name what {done.path} was merged from; restore "
                "it from a copy"
            )
        return Model(n, done.path, done.as_input, terms, done, content.rounding)
    return _merged(run, n, terms, content.rounding, baseline)


def interpolated(run: Run, model: Model, earlier: int, decision: Finished, baseline: Finished) -> Model:
    """The weights halfway back to an earlier round: what came after it counts half (WiSE-FT).

    Source: arXiv 2504.10478, which restores lost coverage by interpolating with an early checkpoint.
    """
    terms = tuple((d, w / 2.0 if d.manifest.round > earlier else w) for d, w in model.terms)
    return _merged(run, model.round, terms, model.rounding, baseline, "interpolate", decision)


def _merged(
    run: Run,
    n: int,
    terms: Terms,
    rounding: Rounding,
    baseline: Finished,
    stage: Literal["merge", "interpolate"] = "merge",
    decision: Finished | None = None,
) -> Model:
    def work(out: Path) -> Metrics:
        added = checked_terms(terms)
        metrics: Metrics = write_weights(run, rounding, added, out)
        metrics["update_effective_rank"] = effective_rank(added)
        run.bench.release()
        return metrics | gate.check(
            base_dir=run.bench.base.path,
            merged_dir=out,
            terms=added,
            probes=evaluation.read_reference(store.checked(baseline)),
            device=run.bench.device,
        )

    settings: dict[str, Any] = {"rounding": rounding}
    if any(weight != 1.0 for _, weight in terms):
        settings["weights"] = [weight for _, weight in terms]
    inputs = {"base": run.base_input, "probes": baseline.as_input}
    inputs |= {f"adapter_{done.manifest.round:03d}": done.as_input for done, _ in terms}
    if decision is not None:
        inputs["decision"] = decision.as_input
    done = step(run, n, stage, merging.STAGE_VERSION, settings, inputs, work)
    return Model(n, done.path, done.as_input, terms, done, rounding)


def check_chain(run: Run) -> None:
    """Hash what later rounds build on, so that damage is found before anything is drawn or trained.

    Every adapter goes into every later merge, every evaluation into every later decision.

    Raises:
        BadArtifactError: a file is missing or its content changed.
    """
    for n in run.place.known_rounds():
        for stage in ("train", "evaluate", "filter"):
            if done := store.finished(run.place.stage(n, stage)):
                store.checked(done)


def checked_terms(terms: Terms) -> list[Term]:
    """The adapters as a merge takes them, their files compared with their manifests."""
    return [Term(store.checked(adapter), weight) for adapter, weight in terms]


def effective_rank(terms: Sequence[Term]) -> float:
    """How many directions the adapters span together, over all matrices."""
    with opened(terms, None) as parts:
        return health.effective_rank(stacked(factors) for factors in parts.values())


def write_weights(run: Run, rounding: Rounding, terms: Sequence[Term], out: Path) -> Metrics:
    """Merge into `out`, showing progress."""
    files = len(list(run.bench.base.path.glob(merging.WEIGHT_FILES)))
    with progress.task("merge", files, "files") as task:
        return merging.merge(
            rounding,
            base_dir=run.bench.base.path,
            terms=terms,
            out=out,
            on_shard=lambda *_: task.advance(),
        )


def ready(run: Run, model: Model) -> Path:
    """The model folder, whole and its content checked once per process; rebuilt if it was pruned.

    Raises:
        BadArtifactError: a file was altered, or the rebuilt weights are not the recorded ones.
    """
    if model.merged is None:
        return model.path
    if store.pruned(model.merged):
        progress.say(f"round {model.round}: the merged model was pruned and is rebuilt from its adapters")
        with timed(run, model.round, "merge"):
            store.restore(
                model.merged,
                lambda out: write_weights(run, model.rounding, checked_terms(model.terms), out),
            )
    return store.checked(model.merged)


def prune(run: Run, best: int) -> None:
    """Delete merged weights that are neither among the last nor the best; adapters and manifests stay.

    What is there is read from disk, not remembered, and the newest is whole before anything goes.
    """
    for stage in ("merge", "interpolate"):
        stages = {n: store.finished(run.place.stage(n, stage)) for n in run.place.known_rounds() if n}
        merged = {n: done for n, done in stages.items() if done}
        for n in superfluous(list(merged), run.config.merge.keep_last, best if stage == "merge" else 0):
            files = [name for name in merged[n].manifest.outputs if Path(name).match(merging.WEIGHT_FILES)]
            store.prune(merged[n], files)


def superfluous(rounds: Sequence[int], keep_last: int, best: int) -> list[int]:
    """The rounds whose merged weights are not kept."""
    kept = {*sorted(rounds)[-keep_last:], best}
    return [n for n in rounds if n not in kept]
