"""What follows from a round's measurement: a decision, the best round, a stop or a remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ssd_loop import durable, evaluation, exporting, measuring, monitoring, progress, store, weights
from ssd_loop.errors import ConfigError
from ssd_loop.monitors import rule
from ssd_loop.monitors.decision import Decision, read_decision
from ssd_loop.place import BEST, CONTINUED, SEEDS, Place, round_name
from ssd_loop.prompts import content_input
from ssd_loop.running import Run, step
from ssd_loop.store import Finished, Metrics
from ssd_loop.weights import Model


def earlier_decisions(run: Run) -> list[Decision]:
    """This run's own decisions on the rounds that it goes on from, which its error budget goes on from too.

    Rounds that another run handed over were decided on there; the budget of this one is its own.
    """
    if run.begins != "own round":
        return []
    if run.start and not store.finished(run.place.stage(run.start, "monitor")):
        raise ConfigError(
            f"round {run.start} of run {run.place.run} is not decided on yet; finish it first: run again "
            "without --resume-from"
        )
    stages = [store.finished(run.place.stage(n, "monitor")) for n in range(1, run.start + 1)]
    return [read_decision(store.checked(done)) for done in stages if done]


def monitor(
    run: Run,
    n: int,
    model: Model,
    kept: Finished,
    history: Sequence[Finished],
    decisions: Sequence[Decision],
) -> Decision:
    """Decide whether another round is worth it, point `best` at the best one and prune old weights."""
    assert model.merged is not None
    first = decisions[0].round if decisions else n
    seeds = retrained(run, first)
    folders = monitoring.Folders(
        round=n,
        evaluations={done.manifest.round: store.checked(done) for done in history},
        second=None,
        merge=model.merged.manifest.metrics,
        seeds=tuple(store.checked(done) for done in seeds),
        first=first,
    )
    second = measuring.second_look(run, n, model, folders, history[0])

    def work(out: Path) -> Metrics:
        looked = replace(folders, second=store.checked(second) if second else None)
        leaked = monitoring.leaked(store.checked(kept), run.config, run.prompts)
        return monitoring.run(looked, run.config, leaked, decisions, out=out)

    inputs = {f"evaluate_{done.manifest.round:03d}": done.as_input for done in history}
    inputs |= {"kept": kept.as_input, "model": model.source, "prompts": content_input(run.prompts)}
    inputs |= evaluation.problem_inputs(run.config.evaluate)
    if second:
        inputs["second_look"] = second.as_input
    inputs |= {done.manifest.stage: done.as_input for done in seeds}
    inputs |= {f"monitor_{d.round:03d}": _monitored(run, d).as_input for d in decisions}
    done = step(run, n, "monitor", rule.STAGE_VERSION, monitoring.settings(run.config), inputs, work)
    return _settled(run, done, history[0])


def discard(run: Run, n: int, adapter: Finished, history: Sequence[Finished]) -> Decision:
    """The decision on a round whose training fell off a cliff: it leaves no weights, and the run ends."""
    step_of_cliff = adapter.manifest.metrics["cliff_step"]

    def work(out: Path) -> Metrics:
        evaluations = {done.manifest.round: store.checked(done) for done in history}
        return monitoring.run_fallen(n, store.checked(adapter), step_of_cliff, evaluations, out=out)

    inputs = {f"evaluate_{done.manifest.round:03d}": done.as_input for done in history}
    inputs["adapter"] = adapter.as_input
    done = step(run, n, "monitor", rule.STAGE_VERSION, {}, inputs, work)
    return _settled(run, done, history[0])


def _settled(run: Run, done: Finished, baseline: Finished) -> Decision:
    """The decision of a finished monitor stage; `best` points at its best round, old weights are pruned."""
    decision = read_decision(store.checked(done))
    exporting.write_card(run.place, decision.round)
    if run.place.stage(decision.round + 1, "sample").exists():  # not the last decision, but gone over again
        return decision
    best = decision.best_round
    if best <= run.start:
        weights.ready(run, weights.handed_over(run, best, baseline))  # may be a composition only
    durable.point_link(run.place.weights / BEST, round_name(best))
    weights.prune(run, best)
    return decision


def retrained(run: Run, first: int) -> list[Finished]:
    """The extra trainings of this run's first own round, where they are finished."""
    asked = SEEDS[: run.config.monitor.seed_trainings]
    found = [store.finished(run.place.stage(first, stage)) for stage in asked]
    return [done for done in found if done]


def remedied(run: Run, model: Model, decisions: Sequence[Decision], baseline: Finished) -> Model:
    """The weights that the next round goes on from: other ones if the last decision asks for that remedy."""
    last = decisions[-1] if decisions else None
    if last is None or last.verdict != "remedy":
        return model
    progress.say(f"round {last.round}: {last.reason}; remedy: {run.config.monitor.remedy}")
    if run.config.monitor.remedy != "interpolate":
        return model
    earlier = last.best_round if last.best_round < last.round else 0  # collapse can come with the best pass@1
    return weights.interpolated(run, model, earlier, _monitored(run, last), baseline)


def asked_since(
    run: Run, decisions: Sequence[Decision], remedy: Literal["accumulate", "variants"]
) -> Finished | None:
    """The decision since which a remedy changes every round, if there was one."""
    if run.config.monitor.remedy != remedy:
        return None
    asked = [decision for decision in decisions if decision.verdict == "remedy"]
    return _monitored(run, asked[0]) if asked else None


def _monitored(run: Run, decision: Decision) -> Finished:
    """The stage that a decision of this run was made in."""
    done = store.finished(run.place.stage(decision.round, "monitor"))
    assert done is not None
    return done


def obeys(run: Run, decision: Decision) -> bool:
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
