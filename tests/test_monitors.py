"""The decision rule, on histories whose right answer is known."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ssd_loop import durable
from ssd_loop.config import MonitorConfig
from ssd_loop.errors import BadArtifactError
from ssd_loop.monitors import rule
from ssd_loop.monitors.paired import MIN_PAIRS, Series, gain_bound, read
from ssd_loop.monitors.rule import Decision, best_round, decide, read_decision

CONFIG = MonitorConfig()
HELDOUT, OOD, PROBE, TEXTS = 104, 82, 72, 24  # sizes of the built-in panels
Report = dict[str, Any]


def report(
    *,
    passed: list[int] | None = None,
    drawn: int = 4,
    ood: list[int] | None = None,
    ood_drawn: int = 4,
    nll: list[float] | None = None,
    distinct: list[float] | None = None,
    truncated: float = 0.1,
    unparsable: float = 0.05,
) -> Report:
    """What `evaluation.run` writes, as far as the monitors read it."""
    passed = [i % (drawn + 1) for i in range(HELDOUT)] if passed is None else passed
    ood = [i % (ood_drawn + 1) for i in range(OOD)] if ood is None else ood
    nll = [1.0 + i / 10 for i in range(TEXTS)] if nll is None else nll
    distinct = [1.2 + i % 5 / 10 for i in range(PROBE)] if distinct is None else distinct
    return {
        "panels": {
            "heldout": {
                "passed": {f"h{i}": [right, drawn] for i, right in enumerate(passed)},
                "truncated_share": truncated,
                "unparsable_share": unparsable,
            },
            "ood": {"passed": {f"o{i}": [right, ood_drawn] for i, right in enumerate(ood)}},
            "probe": {"diversity": {"per_problem": {f"p{i}": value for i, value in enumerate(distinct)}}},
        },
        "reference": {"per_text": {f"t{i}": value for i, value in enumerate(nll)}},
    }


def wobble(values: list[Any], *, by: float, step: int = 1) -> list[Any]:
    """The same values, every other one up and every other one down: no change of the mean."""
    return [value + (by if i // step % 2 else -by) for i, value in enumerate(values)]


STEADY = report(
    nll=wobble([1.0 + i / 10 for i in range(TEXTS)], by=0.01),
    distinct=wobble([1.2 + i % 5 / 10 for i in range(PROBE)], by=0.1),
)
WEAK = report(passed=[max(0, i % 5 - 2) for i in range(HELDOUT)])
STRONG = report(passed=[min(4, i % 5 + 1) for i in range(HELDOUT)])


def test_a_steady_history_goes_on() -> None:
    decision = decide([report(), STEADY, STEADY], CONFIG)
    assert (decision.verdict, decision.kind, decision.attribution) == ("continue", "none", ())
    assert (decision.round, decision.look, decision.best_round) == (2, 1, 0)
    assert set(decision.monitors) == {
        "heldout_truncated_share",
        "heldout_unparsable_share",
        "heldout_pass_at_1",
        "ood_accuracy",
        "reference_nll",
        "probe_distinct",
    }
    assert not any(reading.alarm for reading in decision.monitors.values())


HARMED = {
    "heldout_pass_at_1": WEAK,
    "ood_accuracy": report(ood=[max(0, i % 5 - 2) for i in range(OOD)]),
    "reference_nll": report(nll=wobble([1.3 + i / 10 for i in range(TEXTS)], by=0.02)),
}


@pytest.mark.parametrize("name", HARMED)
def test_harm_is_named(name: str) -> None:
    decision = decide([report(), STEADY, HARMED[name]], CONFIG)
    assert (decision.verdict, decision.kind, decision.attribution) == ("stop", "harm", (name,))
    assert name in decision.reason
    reading = decision.monitors[name]
    assert reading.t is not None
    assert reading.threshold is not None
    assert reading.t > reading.threshold > 2.0


def test_lost_variety_is_collapse_while_pass_rates_rise() -> None:
    collapsed = report(
        passed=[min(4, i % 5 + 1) for i in range(HELDOUT)],
        distinct=[1.0 + i % 3 / 50 for i in range(PROBE)],
    )
    decision = decide([report(), STEADY, collapsed], CONFIG)
    assert (decision.verdict, decision.kind) == ("stop", "collapse")
    assert decision.attribution == ("probe_distinct",)
    assert decision.best_round == 2


@pytest.mark.parametrize("name", ["truncated", "unparsable"])
def test_a_guard_needs_no_statistics(name: str) -> None:
    broken = report(**{name: 0.97})
    decision = decide([report(), broken], CONFIG)
    assert (decision.verdict, decision.kind) == ("stop", "guard")
    assert decision.attribution == (f"heldout_{name}_share",)
    # A model that was like that from the start did not get worse.
    assert decide([broken, broken], CONFIG).verdict == "continue"


def test_a_guard_is_the_kind_even_where_harm_is_seen_too() -> None:
    ruined = copy.deepcopy(WEAK)
    ruined["panels"]["heldout"]["truncated_share"] = 1.0
    decision = decide([report(), ruined], CONFIG)
    assert decision.kind == "guard"
    assert set(decision.attribution) == {"heldout_truncated_share", "heldout_pass_at_1"}


def test_the_decision_depends_on_this_round_and_round_0_alone() -> None:
    assert decide([report(), WEAK, STEADY], CONFIG).verdict == "continue"


def test_the_decision_is_pure() -> None:
    history = [report(), STEADY, WEAK]
    before = copy.deepcopy(history)
    assert decide(history, CONFIG) == decide(history, CONFIG)
    assert history == before


def test_the_order_of_units_does_not_matter() -> None:
    shuffled = copy.deepcopy(WEAK)
    passed = shuffled["panels"]["heldout"]["passed"]
    shuffled["panels"]["heldout"]["passed"] = dict(reversed(passed.items()))
    one, other = decide([report(), WEAK], CONFIG), decide([report(), shuffled], CONFIG)
    assert one.monitors["heldout_pass_at_1"].t == pytest.approx(other.monitors["heldout_pass_at_1"].t)


def test_margins_tolerate_a_worsening() -> None:
    tolerant = MonitorConfig(pass_margin=0.5, nll_margin=1.0, ood_margin=0.5, diversity_margin=0.5)
    for harmed in HARMED.values():
        assert decide([report(), harmed], tolerant).verdict == "continue"


def test_a_longer_horizon_asks_for_more_evidence() -> None:
    def threshold(**other: Any) -> float:
        found = decide([report(), STEADY], MonitorConfig(**other)).monitors["heldout_pass_at_1"].threshold
        assert found is not None
        return found

    assert threshold(horizon=1) < threshold(horizon=10) < threshold(horizon=100)
    assert threshold(false_alarm_rate=0.2) < threshold(false_alarm_rate=0.01)


def test_without_execution_the_other_monitors_still_read() -> None:
    def not_run(one: Report) -> Report:
        one = copy.deepcopy(one)
        one["panels"]["heldout"]["passed"] = one["panels"]["ood"]["passed"] = {}
        return one

    decision = decide([not_run(report()), not_run(STEADY)], CONFIG)
    assert "heldout_pass_at_1" not in decision.monitors
    assert "reference_nll" in decision.monitors
    assert (decision.verdict, decision.best_round) == ("continue", 0)


def test_panels_that_are_not_measured_are_not_read() -> None:
    def heldout_only(one: Report) -> Report:
        return {**one, "panels": {"heldout": one["panels"]["heldout"]}}

    decision = decide([heldout_only(report()), heldout_only(WEAK)], CONFIG)
    assert set(decision.attribution) == {"heldout_pass_at_1"}
    assert "ood_accuracy" not in decision.monitors


def test_the_best_round_has_the_highest_bound_of_its_gain() -> None:
    noisy = report(passed=[4 if i % 3 else 0 for i in range(HELDOUT)])
    assert best_round([report()], CONFIG) == 0
    assert best_round([report(), STEADY], CONFIG) == 0
    assert best_round([report(), WEAK], CONFIG) == 0
    assert best_round([report(), STEADY, STRONG, WEAK], CONFIG) == 2
    assert best_round([report(), STRONG, STRONG], CONFIG) == 1
    assert best_round([report(), noisy, STRONG], CONFIG) == 2


def series(before: list[float], now: list[float], **other: Any) -> Series:
    units = [f"u{i}" for i in range(max(len(before), len(now)))]
    asked = {"name": "s", "family": "harm", "margin": 0.0, "worse": -1, **other}
    return Series(
        baseline=dict(zip(units, before, strict=False)), current=dict(zip(units, now, strict=False)), **asked
    )


def test_a_reading_by_hand() -> None:
    reading = read(series([1.0, 2.0, 3.0, 4.0], [0.9, 1.7, 2.5, 3.9], margin=0.05), level=0.01)
    assert reading is not None
    losses = np.array([0.1, 0.3, 0.5, 0.1])
    se = losses.std(ddof=1) / 2
    assert reading.se == pytest.approx(se)
    assert reading.t == pytest.approx((losses.mean() - 0.05) / se)
    assert reading.threshold == pytest.approx(4.5407, abs=1e-4)  # Student table, 3 degrees of freedom
    assert (reading.baseline, reading.value) == (pytest.approx(2.5), pytest.approx(2.25))
    assert not reading.alarm


def test_direction_and_scale() -> None:
    worse = read(series([1.0, 2.0, 3.0, 4.0], [2.1, 3.0, 4.0, 5.0], worse=1), level=0.05)
    better = read(series([1.0, 2.0, 3.0, 4.0], [2.1, 3.0, 4.0, 5.0], worse=-1), level=0.05)
    relative = read(series([1.0, 2.0, 3.0, 4.0], [2.1, 3.0, 4.0, 5.0], worse=1, relative=True), level=0.05)
    assert worse is not None
    assert better is not None
    assert relative is not None
    assert worse.alarm
    assert not better.alarm
    assert relative.se == pytest.approx((worse.se or 0) / 2.5)


def test_only_units_of_both_rounds_count() -> None:
    reading = read(series([1.0, 2.0, 3.0, 4.0, 50.0], [1.0, 2.0, 3.0, 4.1]), level=0.05)
    assert reading is not None
    assert reading.baseline == pytest.approx(2.5)


def test_too_few_units_say_nothing() -> None:
    few = series([1.0] * (MIN_PAIRS - 1), [0.0] * (MIN_PAIRS - 1))
    assert read(few, level=0.05) is None
    assert gain_bound(few) is None
    assert read(series([0.0] * 5, [0.0] * 5, relative=True), level=0.05) is None


def test_equal_moves_are_compared_with_the_margin_alone() -> None:
    down = series([1.0] * 5, [0.5] * 5, margin=0.4)
    reading = read(down, level=0.05)
    assert reading is not None
    assert (reading.t, reading.alarm) == (None, True)
    kept = read(series([1.0] * 5, [0.5] * 5, margin=0.6), level=0.05)
    assert kept is not None
    assert not kept.alarm


def test_a_gain_bound_by_hand() -> None:
    gains = np.array([0.1, 0.2, 0.3, 0.4])
    bound = gain_bound(series([0.0] * 4, gains.tolist()))
    # 2.3534 is the Student table's one-sided 95 % point for 3 degrees of freedom.
    assert bound == pytest.approx(gains.mean() - 2.3534 * gains.std(ddof=1) / 2, abs=1e-4)


def noisy_report(rng: np.random.Generator, law: dict[str, Any], factor: int, drop: float) -> Report:
    """One evaluation of a model whose true rates are those of `law`, less `drop` of each margin."""
    heldout = np.clip(law["heldout"] - drop * CONFIG.pass_margin, 0, 1)
    ood = np.clip(law["ood"] - drop * CONFIG.ood_margin, 0, 1)
    spread = 0.3 / np.sqrt(factor)
    return report(
        passed=rng.binomial(2 * factor, heldout).tolist(),
        drawn=2 * factor,
        ood=rng.binomial(factor, ood).tolist(),
        ood_drawn=factor,
        nll=(law["nll"] + drop * CONFIG.nll_margin + rng.normal(0, 0.01, TEXTS)).tolist(),
        distinct=(
            law["distinct"] * (1 - drop * CONFIG.diversity_margin) + rng.normal(0, spread, PROBE)
        ).tolist(),
    )


@pytest.mark.parametrize(
    ("drop", "right", "wrong"),
    [(0.0, 0.6, 1.2), (0.0, 0.3, 3.0), (1.0, 0.6, 1.2)],
    ids=["unchanged", "unchanged and weak", "worse by every margin"],
)
def test_healthy_runs_are_stopped_no_oftener_than_the_configured_rate(
    drop: float, right: float, wrong: float
) -> None:
    """250 runs of 10 rounds with the built-in panels' sizes and default sample counts; sampling noise only.

    Unchanged models stay below the rate with room to spare (1 to 2 % measured over 4,000 runs). Where
    every quantity is worse by exactly the margin the rate itself is met, so chance is allowed for.
    """
    rng = np.random.default_rng(20260101)
    runs, stopped = 250, 0
    for _ in range(runs):
        law = {
            "heldout": rng.beta(right, wrong, HELDOUT) * 0.95 + 0.02,
            "ood": rng.beta(right, wrong, OOD) * 0.95 + 0.02,
            "nll": rng.normal(1.5, 0.3, TEXTS),
            "distinct": rng.uniform(1.4, 1.9, PROBE),
        }
        baseline = noisy_report(rng, law, 4, 0.0)
        stopped += any(alarms(baseline, noisy_report(rng, law, 1, drop)) for _ in range(CONFIG.horizon))
    if drop:
        assert stopped <= stats.binom.ppf(0.999, runs, CONFIG.false_alarm_rate)
    else:
        assert stopped / runs <= CONFIG.false_alarm_rate


def alarms(baseline: Report, current: Report) -> bool:
    return any(reading.alarm for reading in rule.statistics(baseline, current, CONFIG).values())


def test_a_decision_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    for history in ([report(), STEADY], [report(), WEAK], [report(), report(truncated=1.0)]):
        decision = decide(history, CONFIG)
        durable.write_json(tmp_path / rule.DECISION, decision.to_json())
        assert read_decision(tmp_path) == decision


def test_a_stored_decision_has_the_documented_keys() -> None:
    data = json.loads(json.dumps(decide([report(), WEAK], CONFIG).to_json(), allow_nan=False))
    assert set(data) == {
        "round",
        "verdict",
        "kind",
        "reason",
        "attribution",
        "best_round",
        "look",
        "monitors",
    }
    keys = {"family", "value", "baseline", "margin", "se", "t", "slow", "threshold", "alarm"}
    assert all(set(reading) == keys for reading in data["monitors"].values())


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"monitors": 3}', '{"monitors": {"a": {}}}'])
def test_a_torn_decision_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / rule.DECISION).write_text(text)
    with pytest.raises(BadArtifactError, match=r"decision\.json"):
        read_decision(tmp_path)


def test_the_summary_is_what_a_table_shows() -> None:
    decision: Decision = decide([report(), STRONG], CONFIG)
    assert rule.summary(decision) == {"verdict": "continue", "kind": "none", "best_round": 1}
