"""The project's own rule on batches of simulated runs, and nine comparator rules on the same traces.

Every monitor, threshold, guard and name comes from `ssd_loop.monitors`; nothing is re-implemented here. What
this module adds is the loop over rounds that the engine's `monitors.rule` runs for one run at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.collapse import world as w
from benchmarks.collapse.world import Floats, Sampled, State, World
from ssd_loop.config import MARGINS, MonitorConfig
from ssd_loop.monitors import degeneracy, judgement, passes, recycling, suite
from ssd_loop.monitors.attribution import signature
from ssd_loop.monitors.contrast import Contrast, Family, Values, contrast
from ssd_loop.monitors.draws import Draws, joined
from ssd_loop.monitors.guards import MERGE_RESIDUAL
from ssd_loop.monitors.replay import TRIGGER, Limits, Pool, limits, slower
from ssd_loop.monitors.rule import BUDGET

Bools = NDArray[np.bool_]
CONFIG = MonitorConfig()


@dataclass(frozen=True)
class Rule:
    """How the rule is set up.

    Attributes:
        sets: J, sample sets of round 0.
        margins: Tolerated worsening by monitor.
        seed_noise: sd between training seeds by monitor; empty if not measured.
        second_look: Times a panel's samples that a second look adds.
        horizon: Rounds that the error budget is for.
    """

    sets: int = 4
    margins: Mapping[str, float] = field(default_factory=lambda: dict(MARGINS))
    seed_noise: Mapping[str, float] = field(default_factory=dict)
    second_look: int = CONFIG.second_look
    horizon: int = 10

    @property
    def monitors(self) -> tuple[suite.Monitor, ...]:
        """Those on samples, the probe panel's on the held-out one, as where a run has no probe panel.

        Breadth labels problems with one set of round 0, so it needs a second one to measure.
        """
        found = suite.sampled(w.COVERAGE_K, w.RICHNESS_M)
        placed = (replace(m, panel="heldout") if m.panel == "probe" else m for m in found)
        return tuple(m for m in placed if self.sets > 1 or m.name != "hard_tier_pass_at_1")

    @property
    def scored(self) -> dict[str, tuple[Family, int]]:
        """Family and units of the monitors whose noise is not redrawn."""
        units = dict.fromkeys(suite.SCORED, w.HELDOUT)
        units |= dict.fromkeys(("reference_nll", "fork_loss", "lock_leakage", "dead_share"), w.TEXTS)
        found = {str(name): (family, units[name]) for name, family in suite.SCORED.items()}
        if self.sets == 1:
            del found["recycling"]  # no samples to expect novelty from
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """All monitors that are decided on."""
        return (*(str(m.name) for m in self.monitors), *self.scored)


@dataclass(frozen=True)
class Round0:
    """What a batch of runs measured at round 0."""

    heldout: Sampled
    ood: Sampled
    twin: Values
    measured: Mapping[str, Values]
    judged: Values
    distinct2: Floats

    @property
    def runs(self) -> int:
        """In the batch."""
        return len(self.heldout.log_tokens)


def round0(world: World, rule: Rule, runs: int, seed: Sequence[int]) -> Round0:
    """Round 0 of a batch; the same seed gives the same samples, whatever comes later."""
    rng = np.random.default_rng(list(seed))
    state = w.start(world)
    heldout = w.sample(world, state, "heldout", runs, rule.sets * w.SAMPLES, rng)
    ood = w.sample(world, state, "ood", runs, rule.sets * w.OOD_SAMPLES, rng)
    twin = _twins(w.pass_rate(world, state), runs, rule.sets * w.SAMPLES, rng)
    first = w.sample(world, state, "heldout", runs, w.SAMPLES, rng)  # texts for distinct-2 at equal number
    draws = {"heldout": heldout.draws, "ood": ood.draws}
    sizes = {"heldout": w.SAMPLES, "ood": w.OOD_SAMPLES}
    panel = {str(m.name): "ood" if m.panel == "ood" else "heldout" for m in rule.monitors}
    measured = {str(m.name): m.at_baseline(draws[panel[m.name]], sizes[panel[m.name]]) for m in rule.monitors}
    return Round0(heldout, ood, twin, measured, _in_parts(judgement.measure, heldout.draws), first.distinct2)


def _in_parts(measure: Callable[[Draws], Values], draws: Draws, size: int = 25) -> Values:
    """A measurement run by run, where it needs N^2 memory."""
    parts = [
        measure(draws.over(lambda a, at=at: a[at : at + size])) for at in range(0, len(draws.passed), size)
    ]
    return Values(np.concatenate([p.num for p in parts]), np.concatenate([p.den for p in parts]))


def _twins(rate: Floats, runs: int, n: int, rng: np.random.Generator) -> Values:
    """pass@1 of the renamed twins from n samples each."""
    passed = rng.random((runs, w.HELDOUT, n), dtype=np.float32) < rate[..., None]
    return passes.measure(Draws(passed, passed, passed, passed, passed), 1)


@dataclass(frozen=True)
class Traces:
    """What a batch of runs showed, round by round: (runs, rounds) each, or (monitors, runs, rounds).

    Attributes:
        names: Monitors along the first axis.
        t: After the look or looks.
        t1: After the first look.
        z: Worsening over its standard error after the first look, without margin or seed noise.
        guards: Alarms of the hard guards.
        series: What comparators read: pass1, pass1_0, entropy, tail, drift, distinct2.
        looked: Whether a second look was taken.
        truth: True worsening of the quantities that were watched.
    """

    names: tuple[str, ...]
    t: Floats
    t1: Floats
    z: Floats
    guards: Mapping[str, Bools]
    series: Mapping[str, Floats]
    looked: Bools
    truth: Mapping[str, Floats]


def together(parts: Sequence[Traces]) -> Traces:
    """Several batches as one."""
    first = parts[0]

    def rows(pick: Callable[[Traces], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {k: np.concatenate([pick(p)[k] for p in parts]) for k in pick(first)}

    return Traces(
        names=first.names,
        t=np.concatenate([p.t for p in parts], axis=1),
        t1=np.concatenate([p.t1 for p in parts], axis=1),
        z=np.concatenate([p.z for p in parts], axis=1),
        guards=rows(lambda p: p.guards),
        series=rows(lambda p: p.series),
        looked=np.concatenate([p.looked for p in parts]),
        truth=rows(lambda p: p.truth),
    )


def simulate(
    world: World,
    base: Round0,
    states: Iterable[State],
    rule: Rule,
    rng: np.random.Generator,
    watch: Sequence[str] = (),
) -> Traces:
    """Runs of one batch through all rounds: look, second look where a panel asks for one, guards.

    Args:
        states: Of rounds 1, 2, ...
        watch: Quantities whose true worsening is recorded; for states that differ by run.
    """
    runs, names = base.runs, rule.names
    text0 = w.positions(world, w.start(world), None, rng)
    history, archive, before = [w.start(world)], [], text0.top
    rounds: list[dict[str, object]] = []
    for state in states:
        history.append(state)
        differs = state.text_noise > 0.0 or state.text is not None
        text = w.positions(world, state, runs if differs else None, rng)
        heldout = w.sample(world, state, "heldout", runs, w.SAMPLES, rng)
        ood = w.sample(world, state, "ood", runs, w.OOD_SAMPLES, rng)
        rate = w.pass_rate(world, state) if state.twin is None else state.twin
        twin = _twins(rate, runs, w.SAMPLES, rng)
        old = _archive(archive, (rule.sets - 1) * w.SAMPLES)

        found = _on_samples(base, heldout.draws, ood.draws, rule)
        found |= _on_rounds(base, heldout.draws, twin, old)
        found |= {str(n): _wide(c, runs) for n, c in suite.on_texts(w.repeated(text0, text), text).items()}
        t1 = {n: found[n].t(rule.margins[n], rule.seed_noise.get(n, 0.0)) for n in names if n in found}
        t, looked = _second_look(world, base, state, heldout, ood, twin, old, t1, rule, rng)

        guards = _guards(base, heldout, state)
        guards["not_finite"] = ~np.isfinite(text.nll).all(axis=(-2, -1)) | ~np.isfinite(
            heldout.draws.score
        ).all(axis=(-2, -1))
        truth = w.truths(world, history, text, only=watch) if watch else {}
        nothing = np.full(runs, -np.inf)
        rounds.append(
            {
                "t": np.stack([t.get(n, nothing) for n in names]),
                "t1": np.stack([t1.get(n, nothing) for n in names]),
                "z": np.stack([found[n].t(0.0) if n in found else nothing for n in names]),
                "guards": guards,
                "looked": looked,
                "truth": {k: np.broadcast_to(v, (runs,)) for k, v in truth.items()},
                "series": {
                    "pass1": heldout.draws.passed.mean(axis=(-2, -1)),
                    "pass1_0": base.heldout.draws.passed.mean(axis=(-2, -1)),
                    "entropy": np.broadcast_to(text.entropy.mean(axis=(-2, -1)), (runs,)),
                    "entropy_0": np.full(runs, text0.entropy.mean()),
                    "tail": np.broadcast_to(text.tail.mean(axis=(-2, -1)), (runs,)),
                    "tail_0": np.full(runs, text0.tail.mean()),
                    "drift": np.broadcast_to(np.abs(text.top - before).mean(axis=(-2, -1)), (runs,)),
                    "distinct2": heldout.distinct2,
                    "distinct2_0": base.distinct2,
                },
            }
        )
        archive.insert(0, heldout.draws)
        before = text.top
    return _stacked(names, rounds)


def _stacked(names: tuple[str, ...], rounds: Sequence[Mapping[str, Any]]) -> Traces:
    def of(key: str) -> Floats:
        return np.stack([np.asarray(r[key]) for r in rounds], axis=-1).astype(np.float32)

    def each(key: str) -> dict[str, np.ndarray]:
        return {k: np.stack([r[key][k] for r in rounds], axis=-1) for k in rounds[0][key]}

    series = {k: v.astype(np.float32) for k, v in each("series").items()}
    guards = {k: np.broadcast_to(v, of("looked").shape).copy() for k, v in each("guards").items()}
    return Traces(names, of("t"), of("t1"), of("z"), guards, series, of("looked").astype(bool), each("truth"))


def _wide(found: Contrast, runs: int) -> Contrast:
    """A contrast of shared texts, repeated for every run."""
    return Contrast(
        *(
            np.broadcast_to(x, (runs,))
            for x in (found.value, found.baseline, found.worsening, found.se, found.units)
        )
    )


def _archive(kept: Sequence[Draws], width: int) -> Draws | None:
    """Rounds between, the newest first, as many samples as `monitors.evidence` keeps."""
    found: Draws | None = None
    for draws in kept[: -(-width // w.SAMPLES)]:
        found = draws if found is None else joined(found, draws)
    return found.part(0, width) if found is not None and width else None


def _on_samples(
    base: Round0, heldout: Draws, ood: Draws, rule: Rule, at: NDArray[np.int64] | None = None
) -> dict[str, Contrast]:
    """Monitors on samples; `at` names the baseline's runs where these are some of them."""
    found = {}
    for m in rule.monitors:
        draws = ood if m.panel == "ood" else heldout
        before = base.measured[m.name]
        found[str(m.name)] = m.contrast(m.measure(draws), before if at is None else before[at])
    return found


def _on_rounds(
    base: Round0, heldout: Draws, twin: Values, archive: Draws | None, at: NDArray[np.int64] | None = None
) -> dict[str, Contrast]:
    """`suite.on_rounds` and `suite.twin_gap`, with round 0's own parts measured once and not every round."""
    some = np.arange(base.runs) if at is None else at
    found = {
        "self_judgement": contrast(_in_parts(judgement.measure, heldout), base.judged[some], "ratio", -1),
        "twin_gap": suite.twin_gap(
            (passes.measure(heldout, 1), twin),
            (passes.measure(base.heldout.draws, 1)[some], base.twin[some]),
        ),
    }
    if archive is not None:
        before = base.heldout.draws if at is None else base.heldout.draws.over(lambda a: a[at])
        archived = recycling.comparable(before, archive)
        expected = recycling.expected_novelty(before, archived)
        found["recycling"] = contrast(recycling.novelty(heldout, archive, archived), expected, "paired", -1)
    return found


def _second_look(
    world: World,
    base: Round0,
    state: State,
    heldout: Sampled,
    ood: Sampled,
    twin: Values,
    archive: Draws | None,
    t1: Mapping[str, Floats],
    rule: Rule,
    rng: np.random.Generator,
) -> tuple[dict[str, Floats], Bools]:
    """Statistics of the pooled samples where a panel asked for a second look, and in which runs one did."""
    t = {name: values.copy() for name, values in t1.items()}
    looked = np.zeros(base.runs, bool)
    if not rule.second_look:
        return t, looked
    for panel, first, size in (("heldout", heldout, w.SAMPLES), ("ood", ood, w.OOD_SAMPLES)):
        own = [m for m in rule.monitors if (m.panel == "ood") == (panel == "ood")]
        asks = np.any([t1[m.name] > TRIGGER for m in own], axis=0)
        gaps = t1["twin_gap"] > TRIGGER if panel == "heldout" else np.zeros(base.runs, bool)
        asks |= gaps
        at = np.flatnonzero(asks)
        if not len(at):
            continue
        looked |= asks
        more = w.sample(world, state, panel, len(at), rule.second_look * size, rng, part=at)
        pooled = joined(first.draws.over(lambda a, at=at: a[at]), more.draws)
        few = {str(m.name): m.contrast(m.measure(pooled), base.measured[m.name][at]) for m in own}
        if panel == "heldout":
            old = archive.over(lambda a, at=at: a[at]) if archive is not None else None
            few |= _on_rounds(base, pooled, _twins_again(world, state, twin, gaps, at, rule, rng), old, at)
        for name, found in few.items():
            if name in t:
                t[name][at] = found.t(rule.margins[name], rule.seed_noise.get(name, 0.0))
    return t, looked


def _twins_again(
    world: World,
    state: State,
    twin: Values,
    gaps: Bools,
    at: NDArray[np.int64],
    rule: Rule,
    rng: np.random.Generator,
) -> Values:
    """The twins of the runs `at`, of both looks where their own gap asked for a second one."""
    rate = w.pass_rate(world, state) if state.twin is None else state.twin
    rate = np.broadcast_to(rate, (len(gaps), w.HELDOUT))[at]
    more = _twins(rate, len(at), rule.second_look * w.SAMPLES, rng)
    looks = 1 + rule.second_look
    both = (twin[at].num + rule.second_look * more.num) / looks  # both are shares of their samples
    return Values(np.where(gaps[at, None], both, twin[at].num), twin[at].den)


def _guards(base: Round0, now: Sampled, state: State) -> dict[str, Bools]:
    """Hard guards of `monitors.guards`, on counts; `training_cliff` is the in-training probe's abort."""
    of_before, of_now = float(base.heldout.draws.passed[0].size), float(now.draws.passed[0].size)
    found: dict[str, Bools] = {}
    for name, bad in now.bad.items():
        bound = degeneracy.limit(base.heldout.bad[name].astype(float), of_before, CONFIG.degenerate_floor)
        found[name] = degeneracy.surely_above(bad.astype(float), of_now, bound)
    change = degeneracy.length_change(base.heldout.log_tokens, now.log_tokens)
    found["length"] = degeneracy.runaway(*change)
    size = (base.runs,)
    found["merge_residual"] = np.broadcast_to(~(np.abs(np.asarray(state.residual)) <= MERGE_RESIDUAL), size)
    found["training_cliff"] = np.broadcast_to(np.asarray(state.cliff, bool), size)
    return found


# Thresholds.


def pools(base: Round0, run: int, rule: Rule) -> dict[str, Pool]:
    """Round 0's samples of one run, as `monitors.rule.thresholds` hands them to the replay."""
    heldout, ood = (x.draws.over(lambda a: a[run]) for x in (base.heldout, base.ood))
    more = rule.second_look
    return {
        "heldout": Pool(heldout, w.SAMPLES, more * w.SAMPLES),
        "ood": Pool(ood, w.OOD_SAMPLES, more * w.OOD_SAMPLES),
    }


def thresholds(
    base: Round0, run: int, rule: Rule, seed: int, runs: int | None = None, without: Sequence[str] = ()
) -> dict[str, Limits]:
    """The limits that one run would have, by the project's null replay of its own round 0."""
    more = {} if runs is None else {"runs": runs}
    return limits(
        pools(base, run, rule),
        [m for m in rule.monitors if m.name not in without],
        {name: scored for name, scored in rule.scored.items() if name not in without},
        margins=rule.margins,
        budgets={family: CONFIG.false_alarm_rate * share for family, share in BUDGET.items()},
        horizon=rule.horizon,
        seed=seed,
        seed_noise=rule.seed_noise,
        **more,
    )


Stacked = Mapping[str, tuple[Floats, Floats]]  # (t, slow) limits by monitor: one for all runs, or one each


def stacked(found: Sequence[Mapping[str, Limits]], *, mean: bool) -> Stacked:
    """Limits of several replays: their mean, shared by all runs, or one for each run."""
    out: dict[str, tuple[Floats, Floats]] = {}
    for name in found[0]:
        t, slow = (np.array([getattr(x[name], part) for x in found]) for part in ("t", "slow"))
        out[name] = (t.mean(), slow.mean()) if mean else (t, slow)
    return out


def resolution(world: World, rule: Rule, limit: Stacked, seed: Sequence[int]) -> dict[str, dict[str, float]]:
    """What each monitor on samples can tell apart: standard errors after one and two looks, H0, 50 runs.

    `needed` is the true worsening, in margins, at which half of the runs alarm in the first such round.
    """
    base, state, rng = round0(world, rule, 50, seed), w.start(world), np.random.default_rng([*seed, 1])
    looks = 1 + rule.second_look
    drawn = [
        w.sample(world, state, "heldout", 50, w.SAMPLES * looks, rng).draws,
        w.sample(world, state, "ood", 50, w.OOD_SAMPLES * looks, rng).draws,
    ]
    twin = _twins(w.pass_rate(world, state), 50, w.SAMPLES, rng)
    old = w.sample(world, state, "heldout", 50, (rule.sets - 1) * w.SAMPLES, rng).draws
    found: list[dict[str, Contrast]] = []
    for count in (1, looks):
        heldout, ood = drawn[0].part(0, count * w.SAMPLES), drawn[1].part(0, count * w.OOD_SAMPLES)
        found.append(_on_samples(base, heldout, ood, rule) | _on_rounds(base, heldout, twin, old))
    rows = {}
    for name in found[0]:
        once, twice = (float(x[name].se.mean()) for x in found)
        needed = 1.0 + float(limit[name][0]) * twice / rule.margins[name]
        rows[name] = {"margin": rule.margins[name], "se": once, "se_two_looks": twice, "needed": needed}
    return rows


# Decisions.


@dataclass(frozen=True)
class Judged:
    """What the rule said.

    Attributes:
        score: (runs, rounds) largest statistic over its limit; above 1 is an alarm.
        alarms: (monitors, runs, rounds) which monitors are beyond a limit.
    """

    score: Floats
    alarms: Bools


GUARD = np.float32(1e6)  # a score that no limit reaches


def judged(
    traces: Traces,
    limit: Stacked,
    *,
    slow: bool = True,
    single: bool = False,
    guards: bool = True,
    without: Sequence[str] = (),
) -> Judged:
    """The rule's alarms from the statistics, with one part of it left out where an ablation asks for it."""
    t = traces.t1 if single else traces.t
    before = np.zeros(t.shape[:2])
    score = np.zeros(t.shape, np.float32)
    bounds = [limit[name] for name in traces.names]
    for r in range(t.shape[2]):
        before = slower(t[:, :, r].astype(float), before)
        for i, (bound, slow_bound) in enumerate(bounds):
            if traces.names[i] not in without:
                own = np.nan_to_num(t[i, :, r] / bound, nan=0.0, posinf=GUARD, neginf=0.0)
                score[i, :, r] = np.maximum(own, before[i] / slow_bound if slow else 0.0)
    highest = score.max(axis=0)
    if guards:
        for name, alarm in traces.guards.items():
            if name not in without:
                highest = np.where(alarm, GUARD, highest)
    return Judged(highest, score > 1.0)


def first_above(score: Floats, bound: float) -> NDArray[np.int64]:
    """(runs,) the first round (from 1) with a score above the bound; one past the last if none."""
    above = score > bound
    return np.where(above.any(axis=1), above.argmax(axis=1) + 1, score.shape[1] + 1)


def names_of(traces: Traces, found: Judged, rounds: NDArray[np.int64]) -> list[str]:
    """The failure's name that the project's attribution gives in each run's alarm round; "" without one."""
    last = traces.t.shape[2]
    out = []
    for run, r in enumerate(rounds):
        if r > last:
            out.append("")
            continue
        alarms = {n for i, n in enumerate(traces.names) if found.alarms[i, run, r - 1]}
        alarms |= {n for n, a in traces.guards.items() if a[run, r - 1]}
        moved = alarms | {n for i, n in enumerate(traces.names) if traces.t[i, run, r - 1] > TRIGGER}
        out.append(signature(alarms, moved))
    return out


def first_monitors(traces: Traces, found: Judged, rounds: NDArray[np.int64]) -> Counter[str]:
    """How often each monitor or guard was among those that raised the first alarm."""
    seen: Counter[str] = Counter()
    for run, r in enumerate(rounds):
        if r <= traces.t.shape[2]:
            seen.update(n for i, n in enumerate(traces.names) if found.alarms[i, run, r - 1])
            seen.update(n for n, a in traces.guards.items() if a[run, r - 1])
    return seen


# Comparators: each a score by run and round; an alarm is a score above a bound.


@dataclass(frozen=True)
class Comparator:
    """A rule in use elsewhere.

    Attributes:
        habitual: The bound that it is used with.
        score: (runs, rounds) from the traces.
    """

    name: str
    habitual: float
    score: Callable[[Traces], Floats]


def _worst_z(traces: Traces) -> Floats:
    return np.clip(traces.z, -10.0, 1e4).max(axis=0)


def _patience(traces: Traces) -> Floats:
    """How far held-out pass@1 stayed below its best for three rounds in a row, at least."""
    level = np.concatenate([traces.series["pass1_0"][:, :1], traces.series["pass1"]], axis=1)
    best = np.maximum.accumulate(level, axis=1)
    below = (best[:, :-1] - level[:, 1:]).astype(np.float32)
    score = np.full(below.shape, -1.0, np.float32)
    for r in range(2, below.shape[1]):
        score[:, r] = below[:, r - 2 : r + 1].min(axis=1)
    return score


def _entropy(traces: Traces) -> Floats:
    return -traces.series["entropy"]


def _distinct2(traces: Traces) -> Floats:
    return 1.0 - traces.series["distinct2"] / traces.series["distinct2_0"]


def _page_hinkley(traces: Traces) -> Floats:
    """Page-Hinkley on the largest z, with river's delta of .005."""
    x = _worst_z(traces).astype(float)
    mean = np.cumsum(x, axis=1) / np.arange(1, x.shape[1] + 1)
    total = np.cumsum(x - mean - 0.005, axis=1)
    return total - np.minimum.accumulate(np.minimum(total, 0.0), axis=1)


def _precursors(traces: Traces) -> Floats:
    """The least of: shrinkage of mean entropy, of tail mass, and of the drift between rounds (freezing)."""
    s = traces.series
    most = np.maximum.accumulate(s["drift"], axis=1)
    frozen = 1.0 - np.where(most > 0.0, s["drift"] / np.maximum(most, 1e-12), 0.0)
    return np.minimum.reduce([1.0 - s["entropy"] / s["entropy_0"], 1.0 - s["tail"] / s["tail_0"], frozen])


BET = 0.5  # of the e-process: log E grows by BET z - BET^2 / 2


def _e_process(traces: Traces) -> Floats:
    """Log of the mean over monitors of products over rounds, as if every round had a fresh baseline."""
    log_e = np.cumsum(BET * np.clip(traces.z, -10.0, 1e4) - BET**2 / 2.0, axis=2)
    top = log_e.max(axis=0)
    return top + np.log(np.exp(log_e - top).mean(axis=0))


def _gate(traces: Traces) -> Floats:
    return traces.z[traces.names.index("heldout_pass_at_1")]


def _plain(traces: Traces) -> Floats:
    """Our monitors, margins and guards, but one look, one bound for all, and no slow arm."""
    score = np.clip(traces.t1, -10.0, 1e4).max(axis=0)
    return np.where(np.any(list(traces.guards.values()), axis=0), GUARD, score)


COMPARATORS = (
    Comparator("any monitor beyond 2 SE", 2.0, _worst_z),
    Comparator("patience 3 on pass@1", 0.0, _patience),
    Comparator("absolute mean entropy (rlwatch)", -1.0, _entropy),
    Comparator("distinct-2 down by 20 %", 0.2, _distinct2),
    Comparator("Page-Hinkley on max z", 50.0, _page_hinkley),
    Comparator("three precursors (MTR)", 0.05, _precursors),
    Comparator("naive e-process", float(np.log(20.0)), _e_process),
    Comparator("per-round gate on pass@1 (PACE)", 1.645, _gate),
    Comparator("our margins and guards, any T beyond 2", 2.0, _plain),
)
