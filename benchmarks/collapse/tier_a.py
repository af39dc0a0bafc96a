"""Tier A of the collapse test bed: an exact simulator, driven through the project's own monitors.

    python -m benchmarks.collapse.tier_a --runs 20000 --replay-runs 400 --out FOLDER
    python -m benchmarks.collapse.tier_a --quick --out FOLDER

Writes tier_a.json (every figure), tier_a.md (tables) and plots. The same seed gives the same JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.collapse import modes as m
from benchmarks.collapse import rules as r
from benchmarks.collapse import scoring as s
from benchmarks.collapse import world as w
from benchmarks.collapse.modes import CONTROLS, GRID, MODES, ROUNDS, Mode
from benchmarks.collapse.rules import COMPARATORS, Rule, Stacked, Traces
from benchmarks.collapse.world import State, World
from ssd_loop.config import MARGINS

OURS, TUNED = "this rule", "this rule, tuned"
RATE = 0.05
EDGES = (
    "heldout_pass_at_1",
    "heldout_coverage",
    "hard_tier_pass_at_1",
    "gate_precision",
    "ood_pass_at_1",
    "richness",
    "wrong_agreement",
    "twin_gap",
    "recycling",
    "self_judgement",
)  # monitors on samples; the texts' statistics do not move at all in H0
STILL = ("H0", "H5")  # controls in which nothing changes: the kindest to rules without margins
HEAVY = 50  # runs in a batch where laws differ by run or round 0 is large
WATCHED_SEEDS = ("heldout_pass_at_1", "heldout_coverage", "hard_tier_pass_at_1", "reference_nll")


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        runs: Of each healthy control with the shared limits.
        replay_runs: Of each control with limits from each run's own null replay.
        mode_runs: Of each mode at its declared dose.
        dose_runs: At each other dose of the grid.
        shared: Null replays whose mean limits are shared.
        shared_size: Pseudo-runs in each of them.
        ablation_runs: Of each control and mode where an ablation needs new runs.
        seed_runs: Of H0 and H1 where one monitor is at its edge or the seed-noise term is left out.
        batch: Runs simulated at once.
        grid: Doses, as multiples of the declared one.
        sets: J of the ablation.
    """

    runs: int = 20_000
    replay_runs: int = 400
    mode_runs: int = 1000
    dose_runs: int = 250
    shared: int = 5
    shared_size: int = 20_000
    ablation_runs: int = 300
    seed_runs: int = 1000
    batch: int = 250
    grid: tuple[float, ...] = GRID
    sets: tuple[int, ...] = (1, 16)


QUICK = Plan(400, 2, 100, 50, 1, 2000, 0, 50, 200, (1.0,), ())


def say(text: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def batches(runs: int, size: int) -> Iterator[tuple[int, int]]:
    """(index, runs in it) of the batches."""
    for index, start in enumerate(range(0, runs, size)):
        yield index, min(size, runs - start)


def shared_limits(world: World, rule: Rule, plan: Plan, seed: int) -> Stacked:
    """The mean of the limits of several typical round 0s, each replayed at length."""
    base = r.round0(world, rule, plan.shared, [seed, 5])
    found = [r.thresholds(base, i, rule, i, plan.shared_size) for i in range(plan.shared)]
    return r.stacked(found, mean=True)


def controls(
    world: World,
    rule: Rule,
    plan: Plan,
    seed: int,
    keys: Sequence[str],
    runs: int,
    noise: Mapping[str, float],
) -> dict[str, Traces]:
    """Healthy runs of each control; H1 is judged with the seed-noise term."""
    parts: dict[str, list[Traces]] = {key: [] for key in keys}
    size = min(plan.batch, HEAVY) if rule.sets > 4 else plan.batch
    for index, count in batches(runs, size):
        base = r.round0(world, rule, count, [seed, 0, index])
        for key in keys:
            rng = np.random.default_rng([seed, 1, int(key[1]), index])
            own = replace(rule, seed_noise=noise) if key == "H1" else rule
            watch = WATCHED_SEEDS if key == "H1" else ()
            states = m.control_path(world, key, count, rng)
            parts[key].append(r.simulate(world, base, states, own, rng, watch))
        if index % 10 == 0:
            say(f"controls {' '.join(keys)}: {index * size + count} of {runs} runs")
    return {key: r.together(found) for key, found in parts.items()}


def provoked(
    world: World,
    mode: Mode,
    dose: float,
    rule: Rule,
    plan: Plan,
    runs: int,
    seed: Sequence[int],
    *,
    noisy: bool = False,
) -> Traces:
    """Runs of one mode at one dose, with the true worsening of its declared quantity.

    Args:
        noisy: Whether every round has H1's noise between training seeds on top.
    """
    found = []
    size = min(plan.batch, HEAVY) if mode.by_run or noisy or rule.sets > 4 else plan.batch
    for index, count in batches(runs, size):
        base = r.round0(world, rule, count, [*seed, 0, index])
        rng = np.random.default_rng([*seed, 1, index])
        states: Iterator[State] = m.path(world, mode, dose, count, rng)
        if noisy:
            states = (m.seeded(world, state, count, rng) for state in states)
        found.append(r.simulate(world, base, states, rule, rng, [mode.quantity, "heldout_pass_at_1"]))
    return r.together(found)


def healthy_report(
    traces: Mapping[str, Traces], limit: Stacked, noisy: Stacked, rule: Rule
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """False alarms of each control with the shared limits, and the rule's scores."""
    found, scores = {}, {}
    for key, own in traces.items():
        judged = r.judged(own, noisy if key == "H1" else limit)
        alarm = r.first_above(judged.score, 1.0)
        scores[key] = judged.score
        found[key] = {
            "title": CONTROLS[key],
            **s.false_alarms(alarm, ROUNDS),
            "second_looks": float(own.looked.mean()),
            "alarmed_first": dict(r.first_monitors(own, judged, alarm).most_common()),
        }
    return found, scores


def replayed(
    world: World, rule: Rule, plan: Plan, seed: int, noise: Mapping[str, float], traces: Mapping[str, Traces]
) -> dict[str, Any]:
    """False alarms where every run has the limits of its own round 0, on the first runs of each control."""
    own: list[Any] = []
    noisy: list[Any] = []
    with_noise = replace(rule, seed_noise=noise)
    for index, count in batches(plan.runs, plan.batch):
        take = min(count, plan.replay_runs - len(own))
        if take <= 0:
            break
        base = r.round0(world, rule, count, [seed, 0, index])
        for run in range(take):
            own.append(r.thresholds(base, run, rule, seed + run))
            noisy.append(r.thresholds(base, run, with_noise, seed + run))
            if run % 50 == 0:
                say(f"null replays: {len(own)} of {plan.replay_runs}")
    limits = {False: r.stacked(own, mean=False), True: r.stacked(noisy, mean=False)}
    found: dict[str, Any] = {}
    for key, all_runs in traces.items():
        few = first_runs(all_runs, len(own))
        judged = r.judged(few, limits[key == "H1"])
        found[key] = s.false_alarms(r.first_above(judged.score, 1.0), ROUNDS)
    edge = {}
    whole = -(-len(own) // plan.batch) * plan.batch  # whole batches, so that round 0 is the same
    for name in ("heldout_pass_at_1", "richness"):
        few = first_runs(at_the_edge(world, rule, plan, seed, "H0", name, {}, whole), len(own))
        judged = r.judged(few, limits[False])
        edge[name] = s.false_alarms(r.first_above(judged.score, 1.0), ROUNDS)
    spread = {
        f"{family}_{part}": {"mean": float(values.mean()), "sd": float(values.std())}
        for family, pair in limits[False].items()
        for part, values in zip(("t", "slow"), pair, strict=True)
    }
    return {"controls": found, "edges": edge, "limits": spread}


def first_runs(traces: Traces, count: int) -> Traces:
    """The first runs."""
    return replace(
        traces,
        t=traces.t[:, :count],
        t1=traces.t1[:, :count],
        z=traces.z[:, :count],
        guards={k: v[:count] for k, v in traces.guards.items()},
        series={k: v[:count] for k, v in traces.series.items()},
        looked=traces.looked[:count],
        truth={k: v[:count] for k, v in traces.truth.items()},
    )


def mode_report(mode: Mode, traces: Traces, limit: Stacked, rule: Rule, bound: float) -> dict[str, Any]:
    """Detection, delay and attribution of the rule; also with its bound tuned to the common rate."""
    onset = s.onsets(traces.truth[mode.quantity], mode.margin)
    judged = r.judged(traces, limit)
    alarm = r.first_above(judged.score, 1.0)
    names = r.names_of(traces, judged, alarm)
    return {
        **s.detection(alarm, onset, ROUNDS),
        "attribution": s.named_right(names, alarm, mode.expected, ROUNDS),
        "alarmed_first": dict(r.first_monitors(traces, judged, alarm).most_common(6)),
        "second_looks": float(traces.looked.mean()),
        "true_worsening_in_margins": [
            round(float(x), 3) for x in traces.truth[mode.quantity].mean(axis=0) / mode.margin
        ],
        "by_round_after_onset": by_round(alarm, onset),
        "points_lost": lost(traces, alarm),
        "tuned": s.detection(r.first_above(judged.score, bound), onset, ROUNDS),
    }


def lost(traces: Traces, alarm: np.ndarray) -> dict[str, float]:
    """True held-out pass@1 below the best round so far, at the alarm and at the end of all rounds."""
    level = -traces.truth["heldout_pass_at_1"]
    best = np.maximum(np.maximum.accumulate(level, axis=1), 0.0)
    at = np.minimum(alarm, ROUNDS) - 1
    below = best - level
    rows = np.arange(len(level))
    return {"at_alarm": float(below[rows, at].mean()), "without_stop": float(below[:, -1].mean())}


def by_round(alarm: np.ndarray, onset: np.ndarray) -> list[float]:
    """Share of the runs caught by 0, 1, ... rounds after onset."""
    counted = (alarm >= m.ONSET) & (onset <= ROUNDS)
    delay = (alarm - onset)[counted]
    caught = alarm[counted] <= ROUNDS
    return [
        float(((delay <= k) & caught).mean()) if counted.any() else 0.0 for k in range(ROUNDS - m.ONSET + 1)
    ]


def comparison(
    healthy: Mapping[str, Traces],
    ours: Mapping[str, np.ndarray],
    ill: Mapping[str, tuple[Mode, Traces, np.ndarray]],
) -> dict[str, Any]:
    """Every rule at the same false-alarm rate on the pooled controls, and as it is used elsewhere."""
    rules = [(OURS, 1.0, None), *((c.name, c.habitual, c) for c in COMPARATORS)]
    found: dict[str, Any] = {}
    for name, habitual, comparator in rules:
        calm = {k: ours[k] if comparator is None else comparator.score(t) for k, t in healthy.items()}
        bound = s.bound_at(list(calm.values()), RATE)
        still = s.bound_at([calm[k] for k in STILL], RATE)
        row: dict[str, Any] = {"habitual_bound": habitual, "bound": bound, "bound_still": still}
        for label, limit in (("habitual", habitual), ("tuned", bound), ("tuned_still", still)):
            by_control = {k: float((x.max(axis=1) > limit).mean()) for k, x in calm.items()}
            row[f"{label}_false_alarms"] = {"pooled": float(np.mean(list(by_control.values()))), **by_control}
            modes = {}
            for key, (mode, traces, own) in ill.items():
                score = own if comparator is None else comparator.score(traces)
                onset = s.onsets(traces.truth[mode.quantity], mode.margin)
                modes[key] = s.detection(r.first_above(score, limit), onset, ROUNDS)
            row[label] = {"modes": modes, **_mean_over(modes)}
        row["curve"] = _curve(calm, comparator, ill)
        found[name] = row
    return found


def _mean_over(modes: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    delays = [x["delay_mean"] for x in modes.values() if x["delay_mean"] is not None]
    return {
        "detected": float(np.mean([x["detected"] for x in modes.values()])),
        "delay_mean": float(np.mean(delays)) if delays else None,
        "early": float(np.mean([x["early"] / x["runs"] for x in modes.values()])),
    }


def _curve(calm: Mapping[str, np.ndarray], comparator: Any, ill: Mapping[str, Any]) -> list[list[float]]:
    """[false alarms, share caught by one round after onset] over bounds, mean over controls and modes."""
    points = []
    scores = {k: own if comparator is None else comparator.score(t) for k, (_, t, own) in ill.items()}
    onset = {k: s.onsets(t.truth[mode.quantity], mode.margin) for k, (mode, t, _) in ill.items()}
    for rate in (0.0005, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9):
        bound = s.bound_at(list(calm.values()), rate)
        real = float(np.mean([(x.max(axis=1) > bound).mean() for x in calm.values()]))
        caught = []
        for key, score in scores.items():
            alarm = r.first_above(score, bound)
            caught.append(((alarm >= m.ONSET) & (alarm <= np.minimum(onset[key] + 1, ROUNDS))).mean())
        points.append([real, float(np.mean(caught))])
    return points


def left_out(
    ill: Mapping[str, tuple[Mode, Traces, np.ndarray]], limit: Stacked, rule: Rule
) -> dict[str, Any]:
    """Detection and mean delay of every mode without one monitor or guard, where that changes them.

    The limits stay: what is left out is not made up for by the error budget that it frees.
    """
    found: dict[str, Any] = {}
    for name in (*rule.names, *next(iter(ill.values()))[1].guards):
        row = {}
        for key, (mode, traces, own) in ill.items():
            onset = s.onsets(traces.truth[mode.quantity], mode.margin)
            score = r.judged(traces, limit, without=[name]).score
            before = s.detection(r.first_above(own, 1.0), onset, ROUNDS)
            after = s.detection(r.first_above(score, 1.0), onset, ROUNDS)
            if (
                before["detected"] - after["detected"] > 0.05
                or after["delay_mean"] - before["delay_mean"] > 0.5
            ):
                row[key] = {k: (before[k], after[k]) for k in ("detected", "delay_mean")}
        found[name] = row
    return found


def summary_of(
    world: World,
    rule: Rule,
    plan: Plan,
    seed: int,
    limit: Stacked,
    doses: Mapping[str, float],
    keys: Sequence[str],
) -> dict[str, Any]:
    """An ablation that needs new runs: false alarms by control, detection and delay by mode."""
    healthy = controls(world, rule, plan, seed, keys, plan.ablation_runs, {})
    calm = {
        k: s.false_alarms(r.first_above(r.judged(t, limit).score, 1.0), ROUNDS) for k, t in healthy.items()
    }
    modes = {}
    for i, mode in enumerate(MODES):
        runs = min(plan.ablation_runs, 200)
        traces = provoked(world, mode, doses[mode.key], rule, plan, runs, [seed, 3, i])
        modes[mode.key] = _short(mode, traces, r.judged(traces, limit).score)
    say(f"ablation J = {rule.sets}, margins {'on' if any(rule.margins.values()) else 'off'} done")
    return {"limits": _plain(limit), "controls": calm, "modes": modes, **_mean_over(modes)}


def _short(mode: Mode, traces: Traces, score: np.ndarray) -> dict[str, Any]:
    onset = s.onsets(traces.truth[mode.quantity], mode.margin)
    return s.detection(r.first_above(score, 1.0), onset, ROUNDS)


def _plain(limit: Stacked) -> dict[str, list[float]]:
    return {family: [float(t), float(slow)] for family, (t, slow) in limit.items()}


def ablations(
    world: World,
    rule: Rule,
    plan: Plan,
    seed: int,
    limit: Stacked,
    noisy: Stacked,
    noise: Mapping[str, float],
    healthy: Mapping[str, Traces],
    ill: Mapping[str, tuple[Mode, Traces, np.ndarray]],
    doses: Mapping[str, float],
) -> dict[str, Any]:
    """What each part of the rule is worth."""
    found: dict[str, Any] = {}
    alone = shared_limits(world, replace(rule, second_look=0), plan, seed)
    for name, how in {
        "as shipped": (limit, {}),
        "single look": (alone, {"single": True}),
        "no slow arm": (limit, {"slow": False}),
        "no hard guards": (limit, {"guards": False}),
    }.items():
        own, options = how
        calm = {
            k: s.false_alarms(
                r.first_above(
                    r.judged(t, noisy if k == "H1" and own is limit else own, **options).score,
                    1.0,
                ),
                ROUNDS,
            )
            for k, t in healthy.items()
            if k != "H1" or own is limit
        }
        modes = {k: _short(mode, t, r.judged(t, own, **options).score) for k, (mode, t, _) in ill.items()}
        found[name] = {"limits": _plain(own), "controls": calm, "modes": modes, **_mean_over(modes)}
    if plan.ablation_runs:
        keys = [k for k in CONTROLS if k != "H1"]
        for sets in plan.sets:
            other = replace(rule, sets=sets)
            own = shared_limits(world, other, plan, seed)
            found[f"J = {sets}"] = summary_of(world, other, plan, seed, own, doses, keys)
        modes = {}
        noisy_rule = replace(rule, seed_noise=noise)
        for i, mode in enumerate(MODES):
            runs = min(plan.ablation_runs, 200)
            traces = provoked(world, mode, doses[mode.key], noisy_rule, plan, runs, [seed, 6, i], noisy=True)
            modes[mode.key] = _short(mode, traces, r.judged(traces, noisy).score)
        found["modes with seed noise, and the term"] = {
            "limits": _plain(noisy),
            "controls": {},
            "modes": modes,
            **_mean_over(modes),
        }
        unmargined = replace(rule, margins=dict.fromkeys(MARGINS, 0.0))
        own = shared_limits(world, unmargined, plan, seed)
        found["no margins"] = summary_of(world, unmargined, plan, seed, own, doses, keys)
    return found


def at_the_edge(
    world: World,
    rule: Rule,
    plan: Plan,
    seed: int,
    key: str,
    name: str,
    noise: Mapping[str, float],
    runs: int,
) -> Traces:
    """H0 or H1 with the margin of one monitor set to 0: its true worsening is then just its margin.

    That is the worst healthy run that the limits promise to hold for, whichever monitor it is.

    Args:
        noise: The seed-noise term; empty to leave it out.
    """
    own = replace(rule, margins={**rule.margins, name: 0.0})
    return controls(world, own, plan, seed, [key], runs, noise)[key]


def _alarms(traces: Traces, limit: Stacked, rule: Rule) -> dict[str, Any]:
    judged = r.judged(traces, limit)
    alarm = r.first_above(judged.score, 1.0)
    return {**s.false_alarms(alarm, ROUNDS), "alarmed_first": dict(r.first_monitors(traces, judged, alarm))}


def bare(
    world: World, rule: Rule, plan: Plan, seed: int, key: str, runs: int, noise: Mapping[str, float]
) -> Traces:
    """Runs of a control judged without margins."""
    own = replace(rule, margins=dict.fromkeys(MARGINS, 0.0))
    return controls(world, own, plan, seed, [key], runs, noise)[key]


def run(
    plan: Plan, seed: int, save: Callable[[dict[str, Any]], None] = lambda report: None
) -> dict[str, Any]:
    """Everything; `save` gets the report as far as it is whenever a part is done."""
    world, rule = w.make(seed), Rule()
    noise = m.seed_noise(world)
    say("shared limits")
    limit = shared_limits(world, rule, plan, seed)
    noisy = shared_limits(world, replace(rule, seed_noise=noise), plan, seed)
    healthy = controls(world, rule, plan, seed, list(CONTROLS), plan.runs, noise)
    calm, scores = healthy_report(healthy, limit, noisy, rule)
    bound = s.bound_at(list(scores.values()), RATE)
    report: dict[str, Any] = {
        "seed": seed,
        "runs": plan.runs,
        "rounds": ROUNDS,
        "onset_of_provocation": m.ONSET,
        "margins": m.LIMITS,
        "seed_noise": noise,
        "benign_exponent": m.benign_exponent(world),
        "limits": _plain(limit),
        "limits_with_seed_noise": _plain(noisy),
        "resolution": r.resolution(world, rule, limit, [seed, 8]),
        "false_alarms": calm,
        "h1_largest_true_worsening": {k: float(v.max() / MARGINS[k]) for k, v in healthy["H1"].truth.items()},
        "h1_without_seed_term": _alarms(
            controls(world, rule, plan, seed, ["H1"], plan.seed_runs, {})["H1"], limit, rule
        ),
        "edges": {
            name: _alarms(at_the_edge(world, rule, plan, seed, "H0", name, {}, plan.seed_runs), limit, rule)
            for name in EDGES
        },
        "h1_edges": {
            label: {
                name: _alarms(
                    at_the_edge(world, rule, plan, seed, "H1", name, term, plan.seed_runs), own, rule
                )
                for name in ("heldout_pass_at_1", "reference_nll")
            }
            for label, term, own in (("with_term", noise, noisy), ("without_term", {}, limit))
        },
        "tuned_bound": bound,
    }
    save(report)
    ill: dict[str, tuple[Mode, Traces, np.ndarray]] = {}
    doses: dict[str, float] = {}
    report["modes"] = {}
    for i, mode in enumerate((*MODES, *m.EXTRA)):
        dose, exists = m.declared_dose(world, mode)
        doses[mode.key] = dose
        rows = {}
        for j, factor in enumerate(plan.grid):
            amount = min(factor * dose, mode.most)
            runs = plan.mode_runs if factor == 1.0 else plan.dose_runs
            traces = provoked(world, mode, amount, rule, plan, runs, [seed, 2, i, j])
            rows[str(factor)] = {"dose": amount, **mode_report(mode, traces, limit, rule, bound)}
            if factor == 1.0 and mode in MODES:
                ill[mode.key] = (mode, traces, r.judged(traces, limit).score)
        report["modes"][mode.key] = {
            "name": mode.name,
            "quantity": mode.quantity,
            "margin": mode.margin,
            "dose": dose,
            "dose_unit": mode.unit,
            "dose_exists": exists,
            "by_dose": rows,
        }
        at = rows["1.0"]
        say(f"{mode.key} {mode.name}: detected {at['detected']:.3f}, delay {at['delay_mean']}")
    report["cliff_probe"] = probe_report(world, doses["C13"], seed)
    report["comparison"] = comparison(healthy, scores, ill)
    report["left_out"] = left_out(ill, limit, rule)
    save(report)
    report["ablations"] = ablations(world, rule, plan, seed, limit, noisy, noise, healthy, ill, doses)
    save(report)
    report["replayed"] = replayed(world, rule, plan, seed, noise, healthy)
    return report


def probe_report(world: World, dose: float, seed: int) -> dict[str, Any]:
    """C13: at which of the round's probes training is aborted, by dose; false aborts at dose 0."""
    found = {}
    for factor in (0.0, 0.5, 1.0, 2.0, 4.0, 10.0):
        rng = np.random.default_rng([seed, 4, round(10 * factor)])
        abort = m.probe_aborts(world, w.start(world), factor * dose, 500, rng)
        seen = abort[abort <= m.PROBES]
        found[str(factor)] = {
            "aborted": float((abort <= m.PROBES).mean()),
            "median_probe": float(np.median(seen)) if len(seen) else None,
        }
    return {"probes": m.PROBES, "by_dose": found}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=Plan.runs, help="of each healthy control")
    parser.add_argument(
        "--replay-runs", type=int, default=Plan.replay_runs, help="with their own null replay"
    )
    parser.add_argument("--mode-runs", type=int, default=Plan.mode_runs, help="of each mode at its dose")
    parser.add_argument("--ablation-runs", type=int, default=Plan.ablation_runs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="a short form, under two minutes")
    given = parser.parse_args(arguments)
    plan = (
        QUICK
        if given.quick
        else Plan(
            runs=given.runs,
            replay_runs=given.replay_runs,
            mode_runs=given.mode_runs,
            dose_runs=max(1, given.mode_runs // 4),
            ablation_runs=given.ablation_runs,
        )
    )
    given.out.mkdir(parents=True, exist_ok=True)

    def save(report: dict[str, Any]) -> None:
        (given.out / "tier_a.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    report = run(plan, given.seed, save)
    save(report)
    from benchmarks.collapse import pages

    (given.out / "tier_a.md").write_text(pages.tables(report), encoding="utf-8")
    pages.plots(report, given.out)
    say(f"written to {given.out}")


if __name__ == "__main__":
    main()
