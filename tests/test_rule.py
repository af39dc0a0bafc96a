"""The decision rule, on rounds whose right answer is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssd_loop import durable
from ssd_loop.config import MonitorConfig
from ssd_loop.errors import BadArtifactError
from ssd_loop.monitors import suite
from ssd_loop.monitors.attribution import MEANING, NOTHING, attribute, moved_besides, signature
from ssd_loop.monitors.decision import DECISION, Decision, Reading, nearest, read_decision, summary
from ssd_loop.monitors.draws import Draws
from ssd_loop.monitors.evidence import Evidence, Looked, Panel, Texts, gather
from ssd_loop.monitors.replay import Limits
from ssd_loop.monitors.rule import Setup, asks_again, decide, fallen, sentence, thresholds
from ssd_loop.monitors.selection import best_round, is_futile
from ssd_loop.records import Result, Sample, Trait
from tests.evidence import (
    FORKS,
    HEALTHY,
    LAW,
    LOCKS,
    PROBLEMS,
    SAMPLES,
    Array,
    even,
    evidence,
    jittered,
    panel,
    report,
    scored,
    traits,
    worse,
)

SETUP = Setup(MonitorConfig(), coverage_k=4, richness_m=2, seed=0)
HARM, COLLAPSE = Limits(3.2, 1.9), Limits(3.3, 2.0)  # as a replay gives
LIMITS = {m.name: HARM if m.family == "harm" else COLLAPSE for m in SETUP.monitors} | {
    name: HARM if family == "harm" else COLLAPSE for name, family in suite.SCORED.items()
}
STEADY = [report(HEALTHY.right)] * 2


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(1000 + seed)


def decided(seen: Evidence, *, setup: Setup = SETUP, **other: Any) -> Decision:
    given: dict[str, Any] = {"history": STEADY, "earlier": [], "limit": LIMITS, **other}
    return decide(seen, setup, **given)


def alarms(decision: Decision) -> set[str]:
    return {name for name, reading in decision.monitors.items() if reading.alarm}


# One thing that goes wrong, by the monitor that must say so.


def on_panel(name: str, **changed: Any) -> Callable[[], Evidence]:
    return lambda: evidence(rng(), panels={name: panel(replace(HEALTHY, **changed), rng(1))})


def split() -> Evidence:
    """All problems at .4, then two in five always solved, the others never: coverage goes, pass@1 stays."""
    before = replace(HEALTHY, right=np.full(PROBLEMS, 0.4))
    after = replace(HEALTHY, right=np.arange(PROBLEMS) % 5 < 2)
    return evidence(rng(), panels={"heldout": panel(after, rng(1), before=before, samples=16)})


def hard_lost() -> Evidence:
    right = np.where(HEALTHY.right < np.quantile(HEALTHY.right, 0.4), 0.01, HEALTHY.right + 0.2)
    return on_panel("heldout", right=np.clip(right, 0.0, 1.0))()


def learned_by_heart() -> Evidence:
    r = rng()
    better = replace(HEALTHY, right=np.clip(HEALTHY.right + 0.4, 0.0, 1.0))
    return evidence(r, panels={"heldout": panel(better, r), "twin": panel(HEALTHY, r)})


def with_law(change: Callable[[Array], None]) -> Callable[[], Evidence]:
    def planted() -> Evidence:
        law = jittered(LAW, rng())
        change(law)
        return evidence(rng(), law=law / law.sum(axis=-1, keepdims=True))

    return planted


def surprised(law: Array) -> None:
    """At forks the human's word changes places with another one: entropies stay."""
    swapped = law[:, FORKS].copy()
    least = law[:, FORKS].argmin(axis=-1)[..., None]
    np.put_along_axis(swapped, least, law[:, FORKS, :1], axis=-1)
    swapped[..., :1] = np.take_along_axis(law[:, FORKS], least, axis=-1)
    law[:, FORKS] = swapped


def sharpened(law: Array) -> None:
    """At forks half of the rest goes to the human's word."""
    law[:, FORKS, 1:] *= 0.5
    law[:, FORKS, 0] += 1.0 - law[:, FORKS].sum(axis=-1)


def loosened(law: Array) -> None:
    law[:, LOCKS, 0] -= 0.015
    law[:, LOCKS, 1] += 0.015


def deadened(law: Array) -> None:
    law[:, 15:, 1:] *= 0.01


def recycled() -> Evidence:
    """Twenty kinds of programs; this round's are all among those of the rounds before."""
    many = replace(HEALTHY, kinds=even(60))
    archive = many.draw(24, rng(3))
    probe = panel(many, rng(4), before=many, archive=archive)
    old = np.take_along_axis(archive.shape, rng(5).integers(24, size=(PROBLEMS, SAMPLES)), axis=-1)
    return evidence(rng(), panels={"probe": replace(probe, current=replace(probe.current, shape=old))})


PLANTED: dict[str, tuple[Callable[[], Evidence], str, set[str]]] = {
    "heldout_pass_at_1": (
        lambda: evidence(rng(), panels={"heldout": panel(worse(0.2), rng(1))}),
        "harm",
        set(MEANING),  # which it is, is tested below
    ),
    "heldout_coverage": (split, "harm", {"narrowing"}),
    "hard_tier_pass_at_1": (hard_lost, "harm", {"narrowing"}),
    "gate_precision": (on_panel("heldout", accepts=(0.9, 0.95)), "harm", {"self-reinforcing error"}),
    "ood_pass_at_1": (
        lambda: evidence(rng(), panels={"ood": panel(worse(0.2), rng(1))}),
        "harm",
        {"forgetting"},
    ),
    "twin_gap": (learned_by_heart, "harm", {"leak"}),
    "reference_nll": (with_law(surprised), "harm", {"forgetting"}),
    "richness": (on_panel("probe", kinds=(0.97, 0.03)), "collapse", {"template"}),
    "wrong_agreement": (on_panel("probe", mistakes=(0.9, 0.1)), "collapse", {"self-reinforcing error"}),
    "fork_loss": (with_law(sharpened), "collapse", {"sharpening"}),
    "lock_leakage": (with_law(loosened), "collapse", {"noise"}),
    "dead_share": (with_law(deadened), "collapse", {"sharpening"}),
    "recycling": (recycled, "collapse", {"recycling"}),
    "self_judgement": (on_panel("probe", gap=0.0), "collapse", {"self-reinforcing error"}),
    "truncated_share": (lambda: evidence(rng(), now=traits(rng(), 4, cut=0.9)), "guard", {"runaway"}),
    "unparsable_share": (
        lambda: evidence(rng(), now=traits(rng(), 4, unparsable=0.9)),
        "guard",
        {"runaway"},
    ),
    "loops_share": (lambda: evidence(rng(), now=traits(rng(), 4, loops=0.9)), "guard", {"runaway"}),
    "length": (lambda: evidence(rng(), now=traits(rng(), 4, length=400.0)), "guard", {"runaway"}),
    "merge_residual": (lambda: evidence(rng(), merge={"gate_residual": 0.02}), "guard", {"merge"}),
    "panel_overlap": (lambda: evidence(rng(), leaks={"panel_overlap": ["row 3"]}), "guard", {"leak"}),
    "canaries": (lambda: evidence(rng(), leaks={"canaries": ["row 3"]}), "guard", {"leak"}),
    "not_finite": (
        lambda: evidence(rng(), now=[replace(t, logprob=math.nan) for t in traits(rng(), 4)]),
        "guard",
        {"diverged"},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found_and_named(name: str) -> None:
    planted, kind, named = PLANTED[name]
    decision = decided(planted())
    assert name in alarms(decision)
    assert (decision.verdict, decision.kind) == ("stop", kind)
    assert decision.attribution in named
    assert name in decision.reason
    assert decision.reason.startswith(f"{decision.attribution}: {MEANING[decision.attribution]}")
    reading = decision.monitors[name]
    assert reading.family == kind
    if kind != "guard":
        assert reading.t is not None
        assert reading.t > LIMITS[name].t == reading.threshold


def test_the_sentence_has_the_numbers_that_the_name_was_told_by() -> None:
    alarm = Reading("harm", 2.77, 2.65, 0.03, t=7.8, threshold=2.24, alarm=True)
    near = Reading("collapse", 1.19, 1.46, 0.15, t=1.86, threshold=2.79)
    quiet = Reading("collapse", 0.4, 0.41, 0.005, t=-9.0, threshold=2.43)
    readings = {"reference_nll": alarm, "richness": near, "lock_leakage": quiet}
    moved = moved_besides(readings)
    assert moved == {"richness": near}
    assert attribute(readings) == "template"
    said = sentence("harm", "template", readings, MonitorConfig())
    assert said == (
        f"template: {MEANING['template']} (reference_nll 2.65 -> 2.77, t 7.8 over 2.24; also moved: "
        "richness 1.46 -> 1.19, t 1.86 over 2.79)"
    )


def test_without_an_alarm_it_says_what_is_nearest_to_one_be_it_by_the_slow_arm() -> None:
    far = Reading("harm", 2.66, 2.65, 0.03, t=1.0, slow=0.6, threshold=2.24, slow_threshold=1.2)
    near = Reading("collapse", 0.2, 0.25, 0.1, t=1.9, slow=1.4, threshold=3.14, slow_threshold=1.55)
    reported = Reading("report", 0.4, 0.1, None, t=9.0, slow=9.0)
    readings = {"reference_nll": far, "recycling": near, "self_judgement": reported}
    said = sentence("none", NOTHING, readings, MonitorConfig())
    assert said == "no monitor is past its threshold (nearest: recycling, slow 1.4 of 1.55)"
    better = Reading("harm", 2.6, 2.65, 0.03, t=-4.0, slow=0.0, threshold=2.24, slow_threshold=1.2)
    alone = sentence("none", NOTHING, {"reference_nll": better}, MonitorConfig())
    assert alone == "no monitor is past its threshold"


ALONE = sorted(set(PLANTED) - {"heldout_pass_at_1", "heldout_coverage", "hard_tier_pass_at_1", "twin_gap"})


@pytest.mark.parametrize("name", ALONE)
def test_what_is_planted_alone_is_found_alone(name: str) -> None:
    assert alarms(decided(PLANTED[name][0]())) == {name}


def test_healthy_rounds_go_on() -> None:
    for seed in range(12):
        decision = decided(evidence(rng(seed)))
        assert (decision.verdict, decision.kind, decision.attribution) == ("continue", "none", NOTHING)
        closest = nearest(decision.monitors)
        told = f" (nearest: {closest})" if closest else ""
        assert decision.reason == f"no monitor is past its threshold{told}"
        assert not alarms(decision)
        assert (decision.round, decision.look, decision.best_round) == (1, 1, 0)


def test_a_worsening_within_the_margins_goes_on() -> None:
    """Half of every margin that a law can be moved by, in 12 draws."""
    margins = SETUP.config.margins
    law = LAW.copy()
    loosened(law)
    little = LAW + (law - LAW) * 0.5 * margins["lock_leakage"] / 0.015
    for seed in range(12):
        r = rng(seed)
        panels = {
            "heldout": panel(worse(margins["heldout_pass_at_1"] / 2), r),
            "ood": panel(worse(margins["ood_pass_at_1"] / 2), r),
        }
        assert not alarms(decided(evidence(r, panels=panels, law=jittered(little, r))))


def test_a_wide_margin_tolerates_what_a_narrow_one_does_not() -> None:
    seen = PLANTED["heldout_pass_at_1"][0]()
    margins = {
        "heldout_pass_at_1": 0.5,
        "heldout_coverage": 0.5,
        "hard_tier_pass_at_1": 0.5,
        "gate_precision": 0.5,
    }
    tolerant = replace(SETUP, config=MonitorConfig.model_validate({"margins": margins}))
    assert not alarms(decided(seen, setup=tolerant))
    assert decided(seen, setup=tolerant).monitors["heldout_pass_at_1"].margin == 0.5


def test_noise_between_trainings_is_in_every_error() -> None:
    seen = PLANTED["heldout_pass_at_1"][0]()
    plain = decided(seen).monitors["heldout_pass_at_1"]
    noisy = decided(seen, setup=replace(SETUP, seed_noise={"heldout_pass_at_1": 0.05}))
    reading = noisy.monitors["heldout_pass_at_1"]
    assert plain.se is not None
    assert plain.t is not None
    assert reading.se == pytest.approx(math.hypot(plain.se, 0.05))
    assert reading.t == pytest.approx(plain.t * plain.se / math.hypot(plain.se, 0.05))
    assert noisy.monitors["ood_pass_at_1"] == decided(seen).monitors["ood_pass_at_1"]


def test_a_guard_goes_before_harm_and_harm_before_collapse() -> None:
    r = rng()
    ruin = {"heldout": panel(worse(0.2), r)}
    narrow = {"probe": panel(replace(HEALTHY, kinds=(0.97, 0.03)), r)}
    assert decided(evidence(r, panels=narrow)).kind == "collapse"
    assert decided(evidence(r, panels=ruin | narrow)).kind == "harm"
    assert decided(evidence(r, panels=ruin | narrow, now=traits(r, 4, cut=0.9))).kind == "guard"


def test_a_gain_elsewhere_does_not_hide_lost_variety() -> None:
    r = rng()
    better = replace(HEALTHY, right=np.clip(HEALTHY.right + 0.2, 0.0, 1.0))
    panels = {"heldout": panel(better, r), "probe": panel(replace(better, kinds=(0.97, 0.03)), r)}
    decision = decided(evidence(r, panels=panels), history=[report(HEALTHY.right), report(better.right)])
    assert (decision.kind, decision.verdict, decision.best_round) == ("collapse", "stop", 1)


def test_the_decision_is_pure() -> None:
    seen, history = PLANTED["richness"][0](), list(STEADY)
    assert decided(seen, history=history) == decided(seen, history=history)
    assert history == STEADY


# What cannot be read.


def few(seen: Panel, problems: int) -> Panel:
    """The first problems of a panel alone."""

    def cut(draws: Draws) -> Draws:
        return draws.over(lambda array: array[:problems])

    second = cut(seen.second) if seen.second else None
    return replace(
        seen,
        names=seen.names[:problems],
        baseline=cut(seen.baseline),
        current=cut(seen.current),
        second=second,
    )


def test_too_few_problems_give_no_number_but_a_reason() -> None:
    seen = evidence(rng())
    ruined = panel(replace(HEALTHY, right=np.zeros(PROBLEMS)), rng(1))
    tiny = decided(replace(seen, panels={**seen.panels, "heldout": few(ruined, 9), "ood": few(ruined, 10)}))
    for name in ("heldout_pass_at_1", "heldout_coverage", "hard_tier_pass_at_1", "gate_precision"):
        reading = tiny.monitors[name]
        assert (reading.value, reading.t, reading.slow, reading.alarm) == (None, None, None, False)
        assert "10 are needed" in (reading.reason or "")
    assert tiny.monitors["ood_pass_at_1"].value == 0.0


def test_one_sample_per_problem_is_enough_for_a_decision() -> None:
    seen = evidence(rng(), panels={name: panel(HEALTHY, rng(2), samples=1) for name in ("probe", "heldout")})
    decision = decided(seen)
    assert decision.verdict == "continue"
    for name in ("heldout_coverage", "richness", "wrong_agreement"):
        assert decision.monitors[name].value is None
        assert decision.monitors[name].reason


def test_without_execution_the_other_monitors_still_read() -> None:
    r = rng()
    panels = {name: panel(worse(0.3), r, judged=False) for name in ("probe", "heldout", "ood")}
    decision = decided(evidence(r, panels=panels), history=[{"panels": {}}] * 2)
    assert decision.verdict == "continue"
    for monitor in SETUP.monitors:
        reading = decision.monitors[monitor.name]
        assert (reading.value, reading.reason) == (None, "answers were not run")
    assert decision.monitors["reference_nll"].value is not None
    assert thresholds(evidence(r, panels=panels), SETUP)["reference_nll"].t > 0.0


def test_panels_that_are_not_measured_are_named() -> None:
    seen = evidence(rng())
    decision = decided(replace(seen, panels={"heldout": seen.panels["heldout"]}))
    assert decision.monitors["ood_pass_at_1"].reason == "panel ood is not measured"
    assert decision.monitors["richness"].value is not None  # read from heldout where there is no probe
    assert "twin_gap" not in decision.monitors


def test_a_monitor_without_a_limit_only_reports() -> None:
    decision = decided(PLANTED["richness"][0](), limit={"reference_nll": HARM})
    reading = decision.monitors["richness"]
    assert (reading.family, reading.alarm, reading.threshold) == ("report", False, None)
    assert decision.verdict == "continue"


def test_what_is_reported_raises_no_alarm() -> None:
    """Too few problems for recycling and self-judgement: read, but not decided on."""
    for name in ("recycling", "self_judgement"):
        seen = PLANTED[name][0]()
        probe = seen.panels["probe"]
        archive = probe.archive.over(lambda array: array[:60]) if probe.archive else None
        small = replace(few(probe, 60), archive=archive)
        decision = decided(replace(seen, panels={**seen.panels, "probe": small}))
        reading = decision.monitors[name]
        assert (reading.family, reading.alarm, reading.threshold) == ("report", False, None)
        assert reading.t is not None
        assert reading.t > COLLAPSE.t
        assert decision.verdict == "continue"
    for name in PLANTED:
        found = decided(PLANTED[name][0]()).monitors
        assert not any(r.alarm for r in found.values() if r.family == "report")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stops_and_is_stored_as_null(tmp_path: Path, value: float) -> None:
    seen = evidence(rng(), merge={"gate_residual": value, "update_effective_rank": value})
    texts = [replace(score, logprobs=(value, *score.logprobs[1:])) for score in seen.scores.current]
    broken = [replace(t, logprob=value) for t in seen.traits[1]]
    scores = replace(seen.scores, current=texts)
    decision = decided(replace(seen, scores=scores, traits=(seen.traits[0], broken)))
    assert (decision.verdict, decision.kind, decision.attribution) == ("stop", "guard", "diverged")
    assert {"not_finite", "merge_residual"} <= alarms(decision)
    durable.write_json(tmp_path / DECISION, decision.to_json())
    text = (tmp_path / DECISION).read_text()
    stored = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert stored["monitors"]["reference_nll"]["value"] is None
    assert stored["monitors"]["merge_residual"]["value"] is None
    assert stored["monitors"]["merge_residual"]["alarm"] is True
    again = read_decision(tmp_path)
    assert again.to_json() == decision.to_json()
    assert all(not isinstance(v, float) or math.isfinite(v) for v in summary(again).values())
    assert summary(again) == summary(decision)


def test_a_law_that_is_not_a_number_anywhere_still_gives_a_decision() -> None:
    seen = evidence(rng())
    nothing = [
        replace(
            score,
            logprobs=(math.nan,) * len(score.logprobs),
            top_logprobs=(math.nan,) * len(score.top_logprobs),
        )
        for score in seen.scores.current
    ]
    decision = decided(replace(seen, scores=replace(seen.scores, current=nothing)))
    assert (decision.kind, decision.attribution) == ("guard", "diverged")
    json.dumps(decision.to_json(), allow_nan=False)


# The stored form.

READING_KEYS = {
    *("family", "value", "baseline", "margin", "se"),
    *("t", "threshold", "slow", "slow_threshold", "alarm", "reason"),
}
KEYS = {"round", "verdict", "kind", "reason", "attribution", "best_round", "look", "monitors"}


def test_a_stored_decision_has_the_documented_keys() -> None:
    for decision in (decided(evidence(rng())), decided(PLANTED["length"][0]()), CLIFF):
        data = json.loads(json.dumps(decision.to_json(), allow_nan=False))
        assert set(data) == KEYS
        assert all(set(reading) == READING_KEYS for reading in data["monitors"].values())
        assert data["verdict"] in ("continue", "remedy", "stop")
        assert {reading["family"] for reading in data["monitors"].values()} <= {
            "harm",
            "collapse",
            "guard",
            "report",
        }


@pytest.mark.parametrize("name", ["heldout_pass_at_1", "recycling", "length", "panel_overlap"])
def test_a_decision_comes_back_as_it_was_stored(tmp_path: Path, name: str) -> None:
    decision = decided(PLANTED[name][0]())
    durable.write_json(tmp_path / DECISION, decision.to_json())
    again = read_decision(tmp_path)
    assert again.to_json() == decision.to_json()
    assert alarms(again) == alarms(decision)
    assert (again.verdict, again.kind, again.reason) == (decision.verdict, decision.kind, decision.reason)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"monitors": 3}', '{"monitors": {"a": {}}}'])
def test_a_torn_decision_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / DECISION).write_text(text)
    with pytest.raises(BadArtifactError, match=r"decision\.json"):
        read_decision(tmp_path)


def test_the_summary_is_what_a_table_shows() -> None:
    decision = decided(evidence(rng()))
    shown = summary(decision)
    reading = decision.monitors["ood_pass_at_1"]
    assert shown["verdict"] == "continue"
    assert shown["best_round"] == 0
    assert shown["ood_pass_at_1"] == reading.value
    assert shown["ood_pass_at_1_t"] == reading.t
    assert "self_bleu" not in shown  # it could not be read
    assert "dead_share_t" not in shown  # minus infinity: nothing was dead in either round
    assert None not in shown.values()


# Second look.


def test_a_second_look_is_asked_of_the_suspicious_panel_alone() -> None:
    r = rng()
    bad = {name: panel(worse(0.2), r) for name in ("heldout", "ood")}
    narrow = panel(replace(HEALTHY, kinds=(0.97, 0.03)), r)
    assert asks_again(evidence(rng(3)), SETUP) == ()
    assert asks_again(evidence(rng(3), panels={"heldout": bad["heldout"]}), SETUP) == ("heldout",)
    assert asks_again(evidence(rng(3), panels={"ood": bad["ood"]}), SETUP) == ("ood",)
    assert asks_again(evidence(rng(3), panels={"probe": narrow}), SETUP) == ("probe",)
    assert set(asks_again(evidence(rng(3), panels=bad), SETUP)) == {"heldout", "ood"}
    never = replace(SETUP, config=MonitorConfig(second_look=0))
    assert asks_again(evidence(rng(3), panels=bad), never) == ()


def test_without_a_probe_panel_the_held_out_one_is_asked() -> None:
    narrow = panel(replace(HEALTHY, kinds=(0.97, 0.03)), rng())
    seen = replace(evidence(rng()), panels={"heldout": narrow})
    assert asks_again(seen, SETUP) == ("heldout",)


def test_the_second_look_does_not_ask_itself() -> None:
    """It is asked by the first look; what the second says changes the decision, not the asking."""
    seen = panel(worse(0.2), rng())
    better = replace(HEALTHY, right=np.clip(HEALTHY.right + 0.1, 0.0, 1.0))
    outweighed = replace(seen, second=better.draw(24, rng(1)))
    assert asks_again(evidence(rng(), panels={"heldout": outweighed}), SETUP) == ("heldout",)
    assert not alarms(decided(evidence(rng(), panels={"heldout": outweighed})))


def test_both_looks_are_pooled() -> None:
    """An unlucky first look is outweighed by three times as many samples; a true loss is not."""
    r = rng()
    unlucky = replace(panel(worse(0.09), r), second=HEALTHY.draw(24, r))
    first = decided(evidence(rng(), panels={"heldout": replace(unlucky, second=None)}))
    both = decided(evidence(rng(), panels={"heldout": unlucky}))
    assert "heldout_pass_at_1" in alarms(first)
    assert (first.look, both.look) == (1, 2)
    assert not alarms(both)
    all_passed = np.concatenate([unlucky.current.passed, unlucky.second.passed], axis=1)  # type: ignore[union-attr]
    assert both.monitors["heldout_pass_at_1"].value == pytest.approx(all_passed.mean())
    true = decided(evidence(rng(), panels={"heldout": panel(worse(0.09), r, more=24)}))
    assert "heldout_pass_at_1" in alarms(true)
    assert (true.monitors["heldout_pass_at_1"].se or 1.0) < (first.monitors["heldout_pass_at_1"].se or 0.0)


# Slow arm.


def with_slow(slow: float | None, round_index: int = 1) -> Decision:
    reading = Reading("harm", 0.4, 0.4, 0.01, se=0.01, t=1.0, slow=slow, threshold=3.2)
    return replace(decided(evidence(rng())), round=round_index, monitors={"ood_pass_at_1": reading})


def test_the_slow_arm_catches_a_steady_loss_that_no_round_catches() -> None:
    """The loss is about two standard errors beyond the margin in every round."""
    base = panel(HEALTHY, rng(50))
    earlier: list[Decision] = []
    for number in range(1, 10):
        r = rng(900 + number)
        ood = replace(base, current=worse(0.05).draw(SAMPLES, r))
        seen = evidence(r, round_index=number, panels={"ood": ood})
        decision = decided(seen, earlier=earlier, history=STEADY[:1] * (number + 1))
        reading = decision.monitors["ood_pass_at_1"]
        assert reading.t is not None
        assert reading.t < HARM.t
        before = earlier[-1].monitors["ood_pass_at_1"].slow if earlier else 0.0
        assert before is not None
        assert reading.slow == pytest.approx(max(0.4 * reading.t + 0.6 * before, 0.0))
        assert reading.alarm == (reading.slow > HARM.slow)
        if reading.alarm:
            break
        earlier.append(decision)
    assert reading.alarm
    assert number > 2
    assert (decision.kind, decision.verdict, decision.attribution) == ("harm", "stop", "forgetting")
    assert "slow" in (reading.reason or "")
    assert "slow" in decision.reason
    assert not alarms(decided(seen, earlier=[]))


def test_the_slow_arm_goes_on_within_a_horizon_and_begins_anew_after_it() -> None:
    def slow(number: int) -> float:
        seen = evidence(rng(), round_index=number)
        found = decided(seen, earlier=[with_slow(1.5, number - 1)]).monitors["ood_pass_at_1"]
        assert found.t is not None
        assert found.slow is not None
        return found.slow - max(0.4 * found.t, 0.0)

    assert slow(2) != pytest.approx(0.0)
    assert slow(10) == pytest.approx(slow(2))
    assert slow(11) == pytest.approx(0.0)
    assert slow(12) == pytest.approx(slow(2))
    assert slow(21) == pytest.approx(0.0)


def test_a_round_that_cannot_be_read_leaves_the_slow_arm_where_it_was() -> None:
    """As in the replay, where a t that is not finite counts as nothing said."""
    unread = evidence(rng(), round_index=2)
    unread = replace(unread, panels={n: p for n, p in unread.panels.items() if n != "ood"})
    second = decided(unread, earlier=[with_slow(1.5, 1)])
    third = decided(evidence(rng(), round_index=3), earlier=[with_slow(1.5, 1), second])
    at_once = decided(evidence(rng(), round_index=2), earlier=[with_slow(1.5, 1)])
    assert third.monitors["ood_pass_at_1"].slow == at_once.monitors["ood_pass_at_1"].slow


# Remedy, futility, best round.


def test_a_remedy_is_tried_once_and_only_against_collapse() -> None:
    remedying = replace(SETUP, config=MonitorConfig(remedy="accumulate"))
    collapse, harm, guard = (PLANTED[name][0]() for name in ("richness", "ood_pass_at_1", "length"))
    first = decided(collapse, setup=remedying)
    assert (first.verdict, first.kind) == ("remedy", "collapse")
    assert decided(collapse, setup=remedying, earlier=[first]).verdict == "stop"
    healthy = decided(evidence(rng()), setup=remedying, earlier=[first])
    assert healthy.verdict == "continue"
    later = decided(collapse, setup=remedying, earlier=[first, healthy])
    assert later.verdict == "stop"
    assert decided(collapse, setup=remedying, earlier=[healthy]).verdict == "remedy"
    assert decided(harm, setup=remedying).verdict == "stop"
    assert decided(guard, setup=remedying).verdict == "stop"
    assert decided(collapse).verdict == "stop"


def test_collapse_with_harm_is_not_remedied() -> None:
    r = rng()
    both = {"probe": panel(replace(HEALTHY, kinds=(0.97, 0.03)), r), "ood": panel(worse(0.2), r)}
    remedying = replace(SETUP, config=MonitorConfig(remedy="interpolate"))
    assert decided(evidence(r, panels=both), setup=remedying).verdict == "stop"


def rounds(*gains: float, problems: int = 200, noise: float = 0.02, seed: int = 0) -> list[dict[str, Any]]:
    """Reports with these gains over round 0, from 1,000 samples per problem."""
    r = rng(seed)
    base = r.uniform(0.3, 0.6, problems)
    return [
        report(np.clip(base + g + noise * r.standard_normal(problems), 0, 1), 1000) for g in (0.0, *gains)
    ]


def test_two_surely_useless_rounds_are_futile() -> None:
    gain = 0.005
    assert is_futile(rounds(0.1, 0.08, 0.07), gain)
    assert not is_futile(rounds(0.1, 0.08), gain)  # one
    assert not is_futile(rounds(0.1, 0.08, 0.15), gain)  # the last one gained
    assert not is_futile(rounds(0.1, 0.15, 0.13), gain)
    assert not is_futile(rounds(0.1, 0.08, 0.07), 0.0)  # switched off
    assert is_futile(rounds(-0.1, -0.1), gain)
    assert not is_futile(rounds(-0.1), gain)


def test_noise_is_no_futility() -> None:
    """Two rounds that gained nothing, but so noisily that they may have."""
    wide = [is_futile(rounds(0.0, 0.0, noise=0.3, problems=60, seed=seed), 0.005) for seed in range(40)]
    assert sum(wide) <= 5
    assert not is_futile(rounds(-0.1, -0.1, problems=9), 0.005)  # too few to be sure by


def test_where_nothing_is_solved_nothing_is_futile() -> None:
    assert not is_futile([report(np.zeros(100))] * 4, 0.005)
    assert not is_futile([{"panels": {}}] * 4, 0.005)


def test_rounds_that_were_not_measured_are_neither_useful_nor_useless() -> None:
    history: list[Any] = rounds(0.1, 0.08, 0.07)
    assert not is_futile([*history[:2], None, history[3]], 0.005)
    assert is_futile([history[0], None, *history[1:]], 0.005)


def test_futility_is_a_kind_of_its_own_and_yields_to_alarms() -> None:
    history = rounds(0.1, 0.08, 0.07)
    decision = decided(evidence(rng()), history=history)
    assert (decision.verdict, decision.kind, decision.attribution) == ("stop", "futility", NOTHING)
    assert decision.best_round == 1
    assert "two rounds in a row" in decision.reason
    assert decided(PLANTED["richness"][0](), history=history).kind == "collapse"
    never = replace(SETUP, config=MonitorConfig(futility_gain=0.0))
    assert decided(evidence(rng()), history=history, setup=never).kind == "none"


def test_the_best_round_has_the_highest_lower_bound() -> None:
    assert best_round([report(HEALTHY.right)]) == 0
    assert best_round(rounds(0.0)) == 0
    assert best_round(rounds(-0.1, -0.2)) == 0
    assert best_round(rounds(0.05, 0.1, -0.1)) == 2
    history = rounds(0.05, 0.06)
    noisy = rounds(0.07, noise=0.6)[1]  # the highest mean by far less than its error
    assert best_round([*history, noisy]) == 2
    assert best_round([history[0], history[2], history[2]]) == 1  # the earlier one of equals
    assert best_round([history[0], None, history[2]]) == 2


def test_a_best_round_is_hardly_ever_chosen_by_noise() -> None:
    """Each gain is zero: by its 95 % bound one round out of 20 is above, so 10 of 200."""
    chosen = [best_round(rounds(0.0, noise=0.2, problems=50, seed=seed)) for seed in range(200)]
    assert sum(chosen) <= 20


def test_a_best_round_needs_shared_problems() -> None:
    one = report(HEALTHY.right[:3])
    better = report(np.ones(3))
    assert best_round([one, better]) == 0
    renamed = {"panels": {"heldout": {"passed": {f"other{i}": [8, 8] for i in range(50)}}}}
    assert best_round([report(HEALTHY.right), renamed]) == 0


# A cliff inside training.

PROBE = [{"step": 0, "nll": 1.0, "rise": 0.0}, {"step": 8, "nll": 1.5, "rise": 0.5}]
CLIFF = fallen(3, 8, PROBE, rounds(0.05, 0.1))


def test_a_fallen_round_stops_the_run_at_its_best_round() -> None:
    assert (CLIFF.round, CLIFF.verdict, CLIFF.kind, CLIFF.attribution) == (3, "stop", "guard", "cliff")
    assert CLIFF.best_round == 2
    assert "step 8" in CLIFF.reason
    assert "0.5 nats" in CLIFF.reason
    reading = CLIFF.monitors["training_cliff"]
    assert (reading.family, reading.alarm, reading.value, reading.baseline) == ("guard", True, 1.5, 1.0)
    assert attribute(CLIFF.monitors) == "cliff"


def test_a_fallen_round_may_have_no_finite_value(tmp_path: Path) -> None:
    broken = [PROBE[0], {"step": 8, "nll": None, "rise": None}]
    decision = fallen(1, 8, broken, rounds())
    assert "no longer finite" in decision.reason
    durable.write_json(tmp_path / DECISION, decision.to_json())
    assert read_decision(tmp_path) == decision


# Attribution.

SIGNATURES: dict[str, list[tuple[set[str], set[str]]]] = {
    "sharpening": [
        ({"fork_loss"}, {"fork_loss", "dead_share", "richness", "heldout_coverage"}),
        ({"dead_share"}, set()),
        ({"heldout_coverage"}, {"fork_loss"}),
        ({"richness"}, {"fork_loss", "wrong_agreement"}),
    ],
    "noise": [
        ({"lock_leakage"}, {"reference_nll"}),
        ({"truncated_share"}, {"lock_leakage", "reference_nll"}),
        ({"reference_nll"}, {"lock_leakage", "ood_pass_at_1"}),
    ],
    "template": [({"richness"}, set())],
    "self-reinforcing error": [
        ({"wrong_agreement"}, set()),
        ({"gate_precision"}, {"heldout_pass_at_1"}),
        ({"wrong_agreement"}, {"self_judgement", "gate_precision"}),
    ],
    "forgetting": [
        ({"reference_nll"}, {"ood_pass_at_1"}),
        ({"ood_pass_at_1"}, set()),
        ({"reference_nll"}, {"recycling"}),
    ],
    "recycling": [({"recycling"}, set()), ({"recycling", "reference_nll"}, set())],
    "narrowing": [({"hard_tier_pass_at_1"}, set())],
    "leak": [({"panel_overlap"}, set()), ({"canaries"}, {"richness"}), ({"twin_gap"}, {"fork_loss"})],
    "merge": [({"merge_residual"}, {"reference_nll"}), ({"merge_residual"}, {"lock_leakage"})],
    "runaway": [
        ({"truncated_share"}, set()),
        ({"loops_share", "length"}, {"heldout_pass_at_1"}),
        ({"unparsable_share"}, {"reference_nll"}),
    ],
    "regression": [({"heldout_pass_at_1"}, set())],
    "diverged": [({"not_finite", "merge_residual"}, {"reference_nll"})],
    "cliff": [({"training_cliff"}, set())],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_has_its_name(name: str) -> None:
    for raised, moved in SIGNATURES[name]:
        assert signature(raised, raised | moved) == name


def test_every_failure_has_a_signature_and_a_meaning() -> None:
    assert set(SIGNATURES) == set(MEANING)


def test_a_loss_on_all_problems_alike_is_a_regression_not_a_narrowing() -> None:
    """Narrowing means that easy problems carry the mean; here they fall as well."""
    raised = {"heldout_pass_at_1", "hard_tier_pass_at_1"}
    assert signature(raised, raised) == "regression"


def test_pass_rates_that_fall_with_nothing_else_are_a_regression() -> None:
    """The filter takes what it took: less of that is right, because less of everything is."""
    decision = decided(PLANTED["heldout_pass_at_1"][0]())
    assert decision.attribution == "regression"


def test_a_monitor_that_only_moved_helps_to_name_but_raises_nothing() -> None:
    def reading(t: float, alarm: bool) -> Reading:
        return Reading("collapse", 1.0, 1.0, 0.1, t=t, threshold=3.0, alarm=alarm)

    moved = {"richness": reading(3.5, True), "fork_loss": reading(2.0, False)}
    assert attribute(moved) == "sharpening"
    assert attribute({**moved, "fork_loss": reading(1.0, False)}) == "template"
    assert attribute({name: reading(2.0, False) for name in moved}) == NOTHING
    assert attribute({}) == NOTHING


# Limits of a run, and evidence from rows.


def test_limits_are_those_of_round_0_alone() -> None:
    """The same in every round, whatever it brings; they know which panels and texts there are."""
    small = {name: few(panel(HEALTHY, rng(9)), 30) for name in ("probe", "heldout", "ood")}
    seen = evidence(rng(9), panels=small)
    later = {
        name: replace(p, current=few(panel(worse(0.4), rng(1)), 30).current) for name, p in small.items()
    }
    found = thresholds(seen, SETUP)
    assert set(found) == {m.name for m in SETUP.monitors} | {
        "reference_nll",
        "fork_loss",
        "lock_leakage",
        "dead_share",
    }  # few problems: recycling and self-judgement only report; no twins
    assert thresholds(replace(evidence(rng(9), panels=later), round=7), SETUP) == found
    assert thresholds(seen, replace(SETUP, seed=1)) != found
    strict = replace(SETUP, config=MonitorConfig(false_alarm_rate=0.005))
    assert all(own.t > found[name].t for name, own in thresholds(seen, strict).items())


def test_a_model_that_solves_nothing_is_still_stopped_for_forgetting() -> None:
    nothing = replace(HEALTHY, right=np.zeros(PROBLEMS))
    small = few(panel(nothing, rng(2), before=nothing), 30)
    panels = dict.fromkeys(("probe", "heldout", "ood"), small)
    law = jittered(LAW, rng())
    surprised(law)
    seen = evidence(rng(), panels=panels, law=law)
    decision = decided(seen, limit=thresholds(seen, SETUP))
    assert "reference_nll" in alarms(decision)
    assert decision.kind == "harm"


def looked(names: Sequence[str], shapes: Mapping[int, str], samples: int) -> Looked:
    """A look at one panel: sample k of every problem has program `shapes[k]`, or one of its own."""
    keys = [(name, k) for name in names for k in range(samples)]
    drawn = [Sample("heldout", name, k, 0, 0, (), (1,), f"{name} {k}", "stop", -1.0) for name, k in keys]
    results = [Result("heldout", name, k, "passed" if k else "failed", f"b{k}") for name, k in keys]
    found = [
        Trait("heldout", name, k, shapes.get(k, f"own {samples} {k}"), 1, False, False, -1.0)
        for name, k in keys
    ]
    return Looked(
        {"heldout": drawn}, {"heldout": results}, {"heldout": found}, {"heldout": dict.fromkeys(keys, True)}
    )


def test_evidence_is_gathered_panel_by_panel() -> None:
    names = ["x", "y", "z"]
    baseline, now, second = (looked(names, {0: "a"}, n) for n in (8, 2, 6))
    earlier = [looked(names[::-1], {0: "newest", 1: "a"}, 2), *(looked(names, {}, 2) for _ in range(3))]
    scores = Texts(scored(LAW), scored(LAW), scored(LAW))
    seen = gather(4, baseline, now, second, earlier, scores, {"gate_residual": 0.0}, {})
    found = seen.panels["heldout"]
    assert found.names == ("x", "y", "z")
    assert (found.baseline.samples, found.current.samples, found.pooled.samples) == (8, 2, 8)
    assert found.archive is not None
    assert found.archive.samples == 6  # as many as round 0 can tell what to expect of, the newest first
    assert (found.archive.shape[:, 1] == found.baseline.shape[:, 0]).all()
    assert (found.pooled.shape[:, 0] == found.baseline.shape[:, 0]).all()
    assert (found.current.shape[:, 1] != found.baseline.shape[:, 1]).all()
    assert found.judged
    assert found.is_code
    assert seen.texts == [["x 0", "x 1"], ["y 0", "y 1"], ["z 0", "z 1"]]
    assert gather(1, baseline, now, None, [], scores, {}, {}).panels["heldout"].archive is None


def test_every_monitor_has_a_planted_failure() -> None:
    config = set(SETUP.config.margins)
    assert config == {monitor.name for monitor in suite.sampled(4, 2)} | set(suite.SCORED)
    assert config <= set(PLANTED)
