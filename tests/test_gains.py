"""Where a gain is: paired intervals against hand and simulation, and the verdict."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ssd_loop.figures import Difference, points
from ssd_loop.gains import counts, measure, named_changes, paired, rates, verdict
from ssd_loop.records import Result
from tests.rows import result

RIGHT, WRONG = "passed", "failed"


def answers(panel: str, **by_problem: str) -> list[Result]:
    """Results of each problem, one letter an answer: p passed, f failed, n no code, t timeout, - not run."""
    outcome = {"p": "passed", "f": "failed", "n": "no_code", "t": "timeout", "-": "not_run"}
    return [
        result(name, outcome[letter], index, panel)
        for name, letters in by_problem.items()
        for index, letter in enumerate(letters)
    ]


def test_a_paired_difference_by_hand() -> None:
    """Changes of .5, 0 and .25: mean .25, sd .25, t of .975 at 2 degrees 4.3027."""
    found = paired({"a": 0.0, "b": 0.5, "c": 0.5, "gone": 1.0}, {"a": 0.5, "b": 0.5, "c": 0.75, "new": 0.0})
    assert found is not None
    assert (found.problems, found.mean) == (3, pytest.approx(0.25))
    assert (found.before, found.after) == (pytest.approx(1 / 3), pytest.approx(1.75 / 3))
    half = 4.302653 * 0.25 / math.sqrt(3)
    assert (found.low, found.high) == (pytest.approx(0.25 - half), pytest.approx(0.25 + half))
    assert found.direction == 0


def test_without_spread_or_problems_nothing_is_made_up() -> None:
    assert paired({"a": 1.0}, {"b": 1.0}) is None
    alone = paired({"a": 0.0}, {"a": 1.0})
    assert alone is not None
    assert (alone.low, alone.high, alone.direction) == (None, None, 0)
    same = paired({"a": 0.0, "b": 0.5}, {"a": 0.0, "b": 0.5})
    assert same is not None
    assert (same.low, same.high, same.direction) == (0.0, 0.0, 0)
    alike = paired({"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 1.0})  # two problems prove little
    assert alike is not None
    assert (alike.low, alike.high, alike.direction) == (None, None, 0)


@pytest.mark.parametrize("problems", [60, 150])
def test_intervals_of_runs_without_an_effect_cover_zero_as_often_as_they_say(problems: int) -> None:
    """1,000 runs: own problems each, 8 answers a problem before and 2 after, as rounds are measured."""
    rng = np.random.default_rng(problems)
    covered = 0
    for _ in range(1000):
        law = rng.beta(0.4, 1.2, problems)  # most problems hard, a few sure
        before, after = (rng.binomial(n, law) / n for n in (8, 2))
        names = [str(i) for i in range(problems)]
        found = paired(dict(zip(names, before, strict=True)), dict(zip(names, after, strict=True)))
        assert found is not None
        covered += found.direction == 0
    assert 930 <= covered <= 970


def test_intervals_leave_zero_where_there_is_an_effect() -> None:
    rng = np.random.default_rng(5)
    law = rng.beta(1.0, 2.0, 150)
    before, after = rng.binomial(8, law) / 8, rng.binomial(8, np.minimum(law + 0.15, 1.0)) / 8
    names = [str(i) for i in range(150)]
    found = paired(dict(zip(names, before, strict=True)), dict(zip(names, after, strict=True)))
    assert found is not None
    assert found.direction == 1


def test_counts_and_rates() -> None:
    of = counts(answers("heldout", a="ppff", b="f"))
    assert of == {"a": (2, 4), "b": (0, 1)}
    assert rates(of) == {"a": 0.5, "b": 0.0}
    assert rates(of, 2) == {"a": pytest.approx(1 - 1 / 6)}  # two of four wrong: one pair of six


def test_problems_are_named_whose_rate_changed_by_half() -> None:
    gained, lost = named_changes(
        {"a": (0, 8), "b": (8, 8), "c": (4, 8), "d": (1, 8)},
        {"a": (2, 2), "b": (1, 2), "c": (1, 2), "d": (1, 2)},
    )
    assert [row["problem"] for row in gained] == ["a"]
    assert gained[0] == {"problem": "a", "before": [0, 8], "after": [2, 2]}
    assert [row["problem"] for row in lost] == ["b"]


def test_a_whole_report_by_hand() -> None:
    before = answers("heldout", a="ffff", b="nnff", c="pppp", d="ptff") + answers("ood", x="p", y="f", z="-")
    after = answers("heldout", a="pp", b="pf", c="pp", d="ff") + answers("ood", x="p", y="f", z="f")
    found = measure(before, after, {"heldout": {"a": "easy", "b": "hard", "c": "easy", "d": "hard"}})
    json.dumps(found)
    assert list(found["panels"]) == ["heldout"]  # part of the other panel was not run
    panel = found["panels"]["heldout"]
    assert panel["pass_at"]["1"]["before"] == pytest.approx(1.25 / 4)
    assert panel["pass_at"]["1"]["after"] == pytest.approx(2.5 / 4)
    assert set(panel["pass_at"]) == {"1", "2"}  # two answers are the most that both have
    assert panel["tiers"]["easy"]["1"]["mean"] == pytest.approx(0.5)
    assert panel["tiers"]["hard"]["1"]["mean"] == pytest.approx((0.5 - 0.25) / 2)
    assert panel["outcomes"]["no_code"]["before"] == pytest.approx(0.125)
    assert panel["outcomes"]["no_code"]["after"] == 0.0
    assert "crashed" not in panel["outcomes"]
    assert [row["problem"] for row in panel["gained"]] == ["a", "b"]
    assert panel["lost"] == []


def test_panels_of_one_tier_show_none() -> None:
    found = measure(
        answers("ood", a="f", b="f"), answers("ood", a="p", b="f"), {"ood": {"a": "all", "b": "all"}}
    )
    assert found["panels"]["ood"]["tiers"] == {}


UP, FLAT, DOWN = (Difference(60, 0.5, 0.5 + x, x, x - 0.05, x + 0.05) for x in (0.1, 0.0, -0.1))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, "no panel was measured before and after"),
        ({"heldout": FLAT, "ood": FLAT}, "no panel's interval leaves zero (heldout +0.0 [-5.0, +5.0]; ood"),
        ({"heldout": UP, "ood": FLAT}, "gain confined to heldout (heldout +10.0 [+5.0, +15.0] points"),
        ({"heldout": UP}, "gain on heldout (heldout"),
        ({"heldout": UP, "probe": UP, "ood": FLAT}, "gain on heldout and probe (heldout"),
        ({"heldout": UP, "ood": DOWN}, "gain on heldout alone; loss on ood (heldout"),
        ({"heldout": FLAT, "ood": DOWN}, "loss on ood (ood -10.0 [-15.0, -5.0]"),
    ],
)
def test_the_verdict_in_one_sentence(found: dict[str, Difference], said: str) -> None:
    assert verdict(found).startswith(said)


def test_points_show_the_interval_where_there_is_one() -> None:
    assert points(UP) == "+10.0 [+5.0, +15.0]"
    assert points(Difference(1, 0.0, 1.0, 1.0, None, None)) == "+100.0"
