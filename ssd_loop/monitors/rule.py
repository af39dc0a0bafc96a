"""The decision rule: spent-alpha paired tests with a second look, a slow arm, hard guards and futility.

Source: collapse literature, section 5.2. Everything here is pure: the same evidence, settings and earlier
decisions give the same verdict, so `decide RUN` can replay a finished run.

In a run of `monitor.horizon` rounds in which one monitor of each family is at the very edge of its margin and
the others do not move, the chance of any alarm by a threshold is `monitor.false_alarm_rate`
(`ssd_loop.monitors.replay`). That covers the noise of sampling; noise between training seeds only if it was
measured (`seed_noise`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np

from ssd_loop.config import MonitorConfig, MonitorName, PanelName, RunConfig
from ssd_loop.monitors import guards, reported, seeds, selection, suite
from ssd_loop.monitors.attribution import MEANING, attribute, moved_besides
from ssd_loop.monitors.contrast import MIN_UNITS, Contrast, Family
from ssd_loop.monitors.decision import Decision, Kind, Reading, nearest
from ssd_loop.monitors.evidence import Evidence, Panel
from ssd_loop.monitors.passes import measure as passes
from ssd_loop.monitors.replay import TRIGGER, Limits, Pool, limits, slower
from ssd_loop.monitors.selection import History
from ssd_loop.records import derive_seed

STAGE_VERSION = 7
# Share of the false-alarm rate that each family may spend: .03 and .02 of .05 (collapse literature, 5.2).
BUDGET: dict[Family, float] = {"harm": 0.6, "collapse": 0.4}


@dataclass(frozen=True)
class Setup:
    """The settings that a decision depends on.

    Attributes:
        config: Margins, error rate, horizon, guards.
        coverage_k: k of the monitor `heldout_coverage`; 1 leaves it out.
        richness_m: m of distinct@m.
        seed: Run seed; the null replay draws from it.
        seed_noise: Standard deviation between training seeds, by monitor; empty if it was not measured.
    """

    config: MonitorConfig
    coverage_k: int
    richness_m: int
    seed: int
    seed_noise: Mapping[str, float] = field(default_factory=dict)

    @property
    def monitors(self) -> tuple[suite.Monitor, ...]:
        """What is measured on samples."""
        return suite.sampled(self.coverage_k, self.richness_m)


def setup_of(config: RunConfig, seed_noise: Mapping[str, float] | None = None) -> Setup:
    """The part of a run's settings that decides."""
    evaluate = config.evaluate
    return Setup(
        config.monitor, max(evaluate.pass_at), evaluate.diversity_at, config.sample.seed, seed_noise or {}
    )


def panel_of(monitor: suite.Monitor, panels: Mapping[str, Panel]) -> PanelName:
    """Where a monitor is measured in this run."""
    return "heldout" if monitor.panel == "probe" and "probe" not in panels else monitor.panel


def noise_between(trainings: Sequence[Evidence], setup: Setup) -> dict[str, float]:
    """Standard deviation between trainings with other seeds, by monitor; 0 where it cannot be told.

    Scoring texts is deterministic, so all of its variance counts; where samples are drawn, what the drawing
    explains is taken off: half of the squared error of a difference between two trainings.
    """
    found: dict[str, float] = {}
    for name in suite.SCORED:
        values = [suite.on_texts(*seen.scores.positions()).get(name) for seen in trainings]
        told = [float(value.worsening) for value in values if value is not None]
        if len(told) == len(trainings):
            found[name] = seeds.noise(told, [0.0] * len(told))
    for monitor in setup.monitors:
        panels = [seen.panels.get(panel_of(monitor, seen.panels)) for seen in trainings]
        measured = [monitor.measure(panel.current) for panel in panels if panel and panel.judged]
        contrasts = [_on_samples(monitor, seen, setup, pooled=False) for seen in trainings]
        told = [float(c.worsening) for c in contrasts if isinstance(c, Contrast) and c.units >= MIN_UNITS]
        if len(told) == len(trainings) == len(measured):
            pairs = [monitor.contrast(a, b).se for a, b in combinations(measured, 2)]
            found[monitor.name] = seeds.noise(told, [float(se) ** 2 / 2.0 for se in pairs])
    return found


def asks_again(evidence: Evidence, setup: Setup) -> tuple[PanelName, ...]:
    """The panels that a second look is asked of: those with a monitor beyond 1.64 standard errors."""
    if not setup.config.second_look:
        return ()
    asked: list[PanelName] = []
    for monitor in setup.monitors:
        found = _on_samples(monitor, evidence, setup, pooled=False)
        noise = setup.seed_noise.get(monitor.name, 0.0)
        if isinstance(found, Contrast) and found.t(setup.config.margins[monitor.name], noise) > TRIGGER:
            asked.append(panel_of(monitor, evidence.panels))
    if "twin" in evidence.panels:
        gap = _twin_gap(evidence, pooled=False)
        noise = setup.seed_noise.get("twin_gap", 0.0)
        if isinstance(gap, Contrast) and gap.t(setup.config.margins["twin_gap"], noise) > TRIGGER:
            asked += ["heldout", "twin"]
    return tuple(dict.fromkeys(asked))


def thresholds(evidence: Evidence, setup: Setup) -> dict[str, Limits]:
    """The limits of this run by monitor, from round 0's samples alone: the same in all of its rounds."""
    panels, config = evidence.panels, setup.config
    pools: dict[str, Pool] = {}
    placed = [replace(monitor, panel=panel_of(monitor, panels)) for monitor in setup.monitors]
    present = [monitor for monitor in placed if (p := panels.get(monitor.panel)) and p.judged]
    for monitor in present:
        panel = panels[monitor.panel]
        pools[monitor.panel] = Pool(
            panel.baseline, panel.current.samples, config.second_look * panel.current.samples
        )
    return limits(
        pools,
        present,
        {name: (suite.SCORED[name], units) for name, units in _scored_units(evidence).items()},
        margins={str(name): margin for name, margin in config.margins.items()},
        budgets={family: config.false_alarm_rate * share for family, share in BUDGET.items()},
        horizon=config.horizon,
        seed=derive_seed(setup.seed, "null replay"),
        seed_noise=setup.seed_noise,
    )


def _scored_units(evidence: Evidence) -> dict[MonitorName, int]:
    """Units of the monitors whose noise is not redrawn, as far as this run decides on them."""
    texts = len(evidence.scores.baseline)
    units: dict[MonitorName, int] = dict.fromkeys(
        ("reference_nll", "fork_loss", "lock_leakage", "dead_share"), texts
    )
    if "twin" in evidence.panels:
        units["twin_gap"] = len(evidence.panels["twin"].names)
    probe = evidence.probe
    if suite.is_large(probe.current):
        # Problems that a later set may tell it of: right ones as often as there are sets, wrong ones as well.
        right, sets = probe.baseline.passed.sum(axis=-1), probe.baseline.samples // probe.current.samples
        some = right >= sets
        both = some & (probe.baseline.samples - right >= sets)
        units |= {"recycling": int(some.sum()), "self_judgement": int(both.sum())}
    return units


def decide(
    evidence: Evidence,
    setup: Setup,
    *,
    history: History,
    earlier: Sequence[Decision],
    limit: Mapping[str, Limits],
) -> Decision:
    """Whether another round is worth it.

    Args:
        evidence: This round and round 0.
        setup: The settings.
        history: Evaluation reports of round 0 to this one.
        earlier: This run's decisions before, in order.
        limit: The limits of `thresholds`.
    """
    readings = {
        **guards.readings(evidence, setup.config),
        **_statistics(evidence, setup, earlier, limit),
        **reported.readings(evidence, setup.richness_m),
    }
    kind = _kind(readings)
    if kind == "none" and selection.is_futile(history, setup.config.futility_gain):
        kind = "futility"
    attribution = attribute(readings)
    look = 2 if any(panel.second for panel in evidence.panels.values()) else 1
    reason = sentence(kind, attribution, readings, setup.config)
    return Decision(
        round=evidence.round,
        verdict=_verdict(kind, setup.config, earlier),
        kind=kind,
        reason=reason + (", samples of both looks" if look == 2 else ""),
        attribution=attribution,
        best_round=selection.best_round(history),
        look=look,
        monitors=readings,
    )


def fallen(round_index: int, step: int, probe: Sequence[Mapping[str, Any]], history: History) -> Decision:
    """The decision on a round whose training fell off a cliff: it is discarded, and the run ends.

    Args:
        round_index: Which round.
        step: Optimiser step at which the probe saw it.
        probe: Rows of the probe: step, nll and rise.
        history: Evaluation reports of the rounds before.
    """
    last = probe[-1]
    found = last["rise"]
    said = f"rose by {found:.3g} nats per token" if found is not None else "is no longer finite"
    reading = Reading("guard", last["nll"], probe[0]["nll"], None, alarm=True, reason=f"at step {step}")
    attribution = "cliff"
    return Decision(
        round=round_index,
        verdict="stop",
        kind="guard",
        reason=f"cliff: {MEANING[attribution]}: NLL of human text {said} by step {step}, so the round is "
        "discarded; fork the best round with a lower train.learning_rate to go on",
        attribution=attribution,
        best_round=selection.best_round(history),
        look=1,
        monitors={"training_cliff": reading},
    )


def _statistics(
    evidence: Evidence, setup: Setup, earlier: Sequence[Decision], limit: Mapping[str, Limits]
) -> dict[str, Reading]:
    """Every monitor that has a threshold, also those that cannot be read, with the reason."""
    found: dict[MonitorName, tuple[Family, Contrast | str]] = {
        monitor.name: (monitor.family, _on_samples(monitor, evidence, setup, pooled=True))
        for monitor in setup.monitors
    }
    for name, value in suite.on_texts(*evidence.scores.positions()).items():
        found[name] = (suite.SCORED[name], value)
    if "twin" in evidence.panels:
        found["twin_gap"] = (suite.SCORED["twin_gap"], _twin_gap(evidence, pooled=True))
    probe = evidence.probe
    small = not suite.is_large(probe.current)
    for name, value in suite.on_rounds(probe.baseline, probe.pooled, probe.archive).items():
        found[name] = (suite.SCORED[name], value)
    before = _slow_before(evidence.round, earlier, setup.config.horizon)
    readings: dict[str, Reading] = {}
    for name, (family, worsening) in found.items():
        decided = not (small and name in ("recycling", "self_judgement"))
        margin, noise = setup.config.margins[name], setup.seed_noise.get(name, 0.0)
        own = limit.get(name) if decided else None
        readings[name] = _reading(family, worsening, margin, noise, before.get(name, 0.0), own)
    return readings


def _on_samples(monitor: suite.Monitor, evidence: Evidence, setup: Setup, *, pooled: bool) -> Contrast | str:
    """A monitor's worsening, or why it cannot be told."""
    panel = evidence.panels.get(panel_of(monitor, evidence.panels))
    if panel is None:
        return f"panel {monitor.panel} is not measured"
    if not panel.judged:
        return "answers were not run"
    current = panel.pooled if pooled else panel.current
    base = monitor.at_baseline(panel.baseline, panel.current.samples)
    return monitor.contrast(monitor.measure(current), base)


def _twin_gap(evidence: Evidence, *, pooled: bool) -> Contrast | str:
    original, twin = evidence.panels["heldout"], evidence.panels["twin"]
    if not (original.judged and twin.judged):
        return "answers were not run"
    rows = [original.names.index(name) for name in twin.names]
    looks = [panel.pooled if pooled else panel.current for panel in (original, twin)]
    now = passes(looks[0], 1)[rows], passes(looks[1], 1)
    before = passes(original.baseline, 1)[rows], passes(twin.baseline, 1)
    return suite.twin_gap(now, before)


def _slow_before(round_index: int, earlier: Sequence[Decision], horizon: int) -> dict[str, float]:
    """Each monitor's slow statistic after the round before; a new horizon begins a new error budget."""
    last = earlier[-1] if earlier else None
    if last is None or (last.round - 1) // horizon != (round_index - 1) // horizon:
        return {}
    return {name: reading.slow for name, reading in last.monitors.items() if reading.slow is not None}


def _reading(
    family: Family,
    value: Contrast | str,
    margin: float,
    noise: float,
    slow_before: float,
    limit: Limits | None,
) -> Reading:
    named = family if limit else "report"
    if isinstance(value, str):
        return Reading(family, None, None, margin, slow=slow_before or None, reason=value)
    units = int(value.units)
    if units < MIN_UNITS:
        why = f"{units} problems or texts tell it in both rounds, {MIN_UNITS} are needed"
        return Reading(named, None, None, margin, slow=slow_before or None, reason=why)
    t = value.t(margin, noise)
    slow = float(slower(t, np.asarray(slow_before)))
    alarm = limit is not None and bool(t > limit.t or slow > limit.slow)
    return Reading(
        family=named,
        value=float(value.value),
        baseline=float(value.baseline),
        margin=margin,
        se=float(np.hypot(value.se, noise)),
        t=float(t),
        slow=slow,
        threshold=limit.t if limit else None,
        slow_threshold=limit.slow if limit else None,
        alarm=alarm,
        reason=None if limit is None or t > limit.t or not alarm else f"slow arm above {limit.slow:.2f}",
    )


def _kind(readings: Mapping[str, Reading]) -> Kind:
    families = {reading.family for reading in readings.values() if reading.alarm}
    order: tuple[Kind, ...] = ("guard", "harm", "collapse")
    return next((kind for kind in order if kind in families), "none")


def _verdict(
    kind: Kind, config: MonitorConfig, earlier: Sequence[Decision]
) -> Literal["continue", "remedy", "stop"]:
    if kind == "none":
        return "continue"
    remedied = any(decision.verdict == "remedy" for decision in earlier)
    return "remedy" if kind == "collapse" and config.remedy != "none" and not remedied else "stop"


def sentence(kind: Kind, attribution: str, readings: Mapping[str, Reading], config: MonitorConfig) -> str:
    """Why, with the numbers: of what raised the alarm, then of what the name was told by besides.

    Without an alarm: what is nearest to one.
    """
    if kind == "futility":
        return (
            f"two rounds in a row surely gained less than {config.futility_gain:g} of held-out pass@1 over "
            "the best round before them"
        )
    alarms = {name: reading for name, reading in readings.items() if reading.alarm}
    if not alarms:
        closest = nearest(readings)
        return "no monitor is past its threshold" + (f" (nearest: {closest})" if closest else "")
    parts = "; ".join(_said(name, reading) for name, reading in alarms.items())
    besides = "; ".join(_said(name, reading) for name, reading in moved_besides(readings).items())
    return f"{attribution}: {MEANING[attribution]} ({parts}{'; also moved: ' if besides else ''}{besides})"


def _said(name: str, reading: Reading) -> str:
    if reading.value is None:
        return f"{name}: {reading.reason}"
    said = f"{name} {_number(reading.baseline)} -> {_number(reading.value)}"
    if reading.t is None:
        return said + (f", limit {reading.margin:.3g}" if reading.margin is not None else "")
    if reading.reason:
        return f"{said}, slow {_number(reading.slow)}, {reading.reason}"
    return f"{said}, t {_number(reading.t)} over {_number(reading.threshold)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
