"""Every monitor's number, against enumeration, a closed form or simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from ssd_loop.config import MonitorConfig
from ssd_loop.monitors import (
    agreement,
    audit,
    breadth,
    degeneracy,
    forks,
    guards,
    judgement,
    passes,
    positions,
    recycling,
    reported,
    richness,
    suite,
    surface,
    surprise,
)
from ssd_loop.monitors.contrast import MIN_UNITS, Contrast, Form, Values, contrast, level
from ssd_loop.monitors.draws import NOTHING, Draws, collect, counts, joined
from ssd_loop.monitors.health import effective_rank
from ssd_loop.monitors.positions import Positions, coarse_kl, stack
from ssd_loop.records import Result, TextScore, Trait
from tests.evidence import LAW, POSITIONS, TEXTS, Array, Law, evidence, jittered, scored, traits

Measure = Callable[[Draws], Values]


def some_draws(rng: np.random.Generator, problems: int, samples: int, leading: tuple[int, ...] = ()) -> Draws:
    """Draws with every oddity: unparsable programs, answers that did not run, tied scores."""
    size = (*leading, problems, samples)
    return Draws(
        passed=rng.random(size) < rng.random((problems, 1)),
        shape=rng.integers(-1, 4, size),
        behaviour=rng.integers(-1, 3, size),
        accepted=rng.random(size) < 0.6,
        score=rng.integers(0, 4, size) / 2.0,
    )


def fractions(values: Values) -> list[float | None]:
    """num / den by problem; None where it says nothing."""
    return [n / d if d > 0 else None for n, d in zip(values.num, values.den, strict=True)]


def hand(per_problem: Callable[[dict[str, Array]], float | None], draws: Draws) -> list[float | None]:
    """A quantity from each problem's own samples."""
    rows = []
    for i in range(draws.problems):
        rows.append(per_problem({field.name: getattr(draws, field.name)[i] for field in fields(draws)}))
    return rows


def same(found: list[float | None], expected: list[float | None]) -> bool:
    told = [value is None for value in expected]
    return [value is None for value in found] == told and np.allclose(
        [v for v in found if v is not None], [v for v in expected if v is not None]
    )


def mean_over_choices(items: Any, m: int, of: Callable[[Any], float]) -> float | None:
    """Mean of a quantity over all choices of m items; None where there are too few."""
    chosen = [of(choice) for choice in itertools.combinations(items, m)]
    return float(np.mean(chosen)) if chosen else None


def right_programs(p: dict[str, Array]) -> list[int]:
    return p["shape"][p["passed"] & (p["shape"] >= 0)].tolist()


def auc(p: dict[str, Array]) -> float | None:
    pairs = [(a > b) + (a == b) / 2 for a in p["score"][p["passed"]] for b in p["score"][~p["passed"]]]
    return float(np.mean(pairs)) if pairs else None


def among_wrong(p: dict[str, Array]) -> float | None:
    return mean_over_choices(
        p["behaviour"][~p["passed"] & (p["behaviour"] >= 0)], 2, lambda ab: ab[0] == ab[1]
    )


def wrong_alike(p: dict[str, Array]) -> float | None:
    ran = p["passed"] | (p["behaviour"] >= 0)
    answers = list(zip((~p["passed"])[ran].tolist(), p["behaviour"][ran].tolist(), strict=True))
    return mean_over_choices(answers, 2, lambda ab: ab[0] == ab[1] and ab[0][0])


def unseen_of_3(p: dict[str, Array]) -> float | None:
    """Chance that a right program is not among 3 others, over every way to take them."""
    programs = p["shape"][(p["shape"] >= 0) & p["passed"]].tolist()
    found = []
    for i, program in enumerate(programs):
        others = programs[:i] + programs[i + 1 :]
        found.extend(program not in archive for archive in itertools.combinations(others, 3))
    return float(np.mean(found)) if found else None


BY_HAND: dict[str, tuple[Measure, Callable[[dict[str, Array]], float | None]]] = {
    "pass@1": (lambda d: passes.measure(d, 1), lambda p: p["passed"].mean()),
    "pass@3": (lambda d: passes.measure(d, 3), lambda p: mean_over_choices(p["passed"], 3, any)),
    "distinct@2 of right": (
        lambda d: richness.measure(d, 2),
        lambda p: mean_over_choices(right_programs(p), 2, lambda some: len(set(some))),
    ),
    "distinct@3 of right": (
        lambda d: richness.measure(d, 3),
        lambda p: mean_over_choices(right_programs(p), 3, lambda some: len(set(some))),
    ),
    "distinct@2 of all": (
        lambda d: richness.measure(d, 2, right_only=False),
        lambda p: mean_over_choices(p["shape"][p["shape"] >= 0], 2, lambda some: len(set(some))),
    ),
    "wrong alike": (agreement.wrong_alike, wrong_alike),
    "alike among wrong": (agreement.among_wrong, among_wrong),
    "self-judgement": (judgement.measure, auc),
    "precision": (
        audit.precision,
        lambda p: p["passed"][p["accepted"]].mean() if p["accepted"].any() else None,
    ),
    "acceptance": (audit.acceptance, lambda p: p["accepted"].mean()),
    "expected novelty": (
        lambda d: recycling.expected_novelty(d, np.full(d.passed.shape[:-1], 3)),
        unseen_of_3,
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_measure_is_what_enumeration_says(name: str) -> None:
    measure, expected = BY_HAND[name]
    for seed in range(20):
        draws = some_draws(np.random.default_rng(seed), problems=12, samples=7)
        assert same(fractions(measure(draws)), hand(expected, draws))


@pytest.mark.parametrize("name", BY_HAND)
def test_stacked_draws_are_measured_like_each_alone(name: str) -> None:
    measure, _ = BY_HAND[name]
    stacked = some_draws(np.random.default_rng(1), problems=9, samples=6, leading=(2, 3))
    together = measure(stacked)
    assert together.num.shape == together.den.shape == (2, 3, 9)
    for place in np.ndindex(2, 3):
        alone = measure(stacked.over(lambda array, place=place: array[place]))
        assert np.allclose(together[place].num, alone.num)
        assert np.array_equal(together[place].den, alone.den)


@pytest.mark.parametrize("name", BY_HAND)
def test_the_order_of_samples_does_not_matter(name: str) -> None:
    measure, _ = BY_HAND[name]
    rng = np.random.default_rng(2)
    draws = some_draws(rng, problems=15, samples=6)
    order = np.array([rng.permutation(6) for _ in range(15)])
    assert np.allclose(measure(draws).num, measure(draws.chosen(order)).num)


UNMOVED: dict[str, Measure] = {name: measure for name, (measure, _) in BY_HAND.items()}


@pytest.mark.parametrize("name", UNMOVED)
def test_a_measure_does_not_move_with_the_number_of_samples(name: str) -> None:
    """One law, 8 and 64 samples of each of 2,000 problems: equal means within four standard errors."""
    law = Law(np.full(2000, 0.6), kinds=(0.5, 0.2, 0.1, 0.1, 0.1), mistakes=(0.6, 0.3, 0.1), parses=0.8)
    few, many = (
        level(UNMOVED[name](law.draw(n, np.random.default_rng(n))), ratio=name == "self-judgement")
        for n in (8, 64)
    )
    assert few[2] > 1000
    assert abs(few[0] - many[0]) < 4 * math.hypot(few[1], many[1])
    assert few[1] < 0.03  # or nothing would be tested


def test_measures_that_need_more_samples_than_there_are_say_nothing() -> None:
    draws = some_draws(np.random.default_rng(0), problems=5, samples=3)
    for values in (
        passes.measure(draws, 4),
        richness.measure(draws, 4),
        recycling.expected_novelty(draws, np.full(5, 3)),
        judgement.measure(draws.part(0, 1)),
        agreement.wrong_alike(draws.part(0, 1)),
        agreement.among_wrong(draws.part(0, 1)),
    ):
        assert not values.den.any()
        assert np.isfinite(values.num).all()


def test_counting_kinds_skips_what_is_nothing_or_not_counted() -> None:
    kinds = np.array([[0, 2, 2, -1], [1, 1, 1, 1]])
    counted = np.array([[True, True, True, True], [True, False, True, False]])
    assert counts(kinds, counted).tolist() == [[1, 0, 2], [0, 2, 0]]
    assert counts(np.full((2, 3), -1), np.ones((2, 3), bool)).tolist() == [[0], [0]]


def rows(
    shapes: dict[str, list[str | None]], *, scale: int = 1
) -> tuple[list[Result], list[Trait], dict[tuple[str, int], bool]]:
    """One set of samples whose behaviour is called like their program; `scale` makes answers longer."""
    results, found, accepted = [], [], {}
    for name, given in shapes.items():
        for k, shape in enumerate(given):
            results.append(Result("probe", name, k, "passed" if shape == "a" else "failed", shape))
            found.append(Trait("probe", name, k, shape, 10 * scale, False, False, -5.0 * (k + 1) * scale))
            accepted[name, k] = k == 0
    return results, found, accepted


def test_collected_draws_number_programs_alike_in_all_sets() -> None:
    names, (first, second) = collect(
        [rows({"x": ["a", "b"], "y": ["c", None]}), rows({"y": ["d", "c"], "x": ["b", "e"]})]
    )
    assert names == ("x", "y")
    assert first.shape.tolist() == [[0, 1], [0, NOTHING]]
    assert second.shape.tolist() == [[1, 2], [1, 0]]
    assert first.behaviour.tolist() == first.shape.tolist()
    assert first.passed.tolist() == [[True, False], [False, False]]
    assert first.accepted.tolist() == [[True, False]] * 2
    assert joined(first, second).shape.tolist() == [[0, 1, 1, 2], [0, NOTHING, 1, 0]]


def test_scores_do_not_move_with_the_length_of_answers() -> None:
    texts = {"x": ["a", "b", "c"], "y": ["c", None, "a"]}
    _, (short,) = collect([rows(texts)])
    _, (long,) = collect([rows(texts, scale=9)])
    assert short.score.tolist() == pytest.approx(long.score)
    assert short.score[0].tolist() == [-0.5, -1.0, -1.5]


# Breadth.


def test_only_the_first_set_names_the_hard_problems() -> None:
    rng = np.random.default_rng(0)
    draws = Law(rng.random(60)).draw(16, rng)
    values = breadth.measure_baseline(draws, 4)
    for first, other in ((4, 0), (0, 4)):
        changed = replace(draws, passed=draws.passed.copy())
        changed.passed[:, other : other + 4] ^= True
        moved = breadth.measure_baseline(changed, 4)
        assert np.array_equal(moved.den, values.den) == (first == 0)
    assert np.allclose(values.num, draws.passed[:, 4:].mean(axis=-1))


def test_the_hard_problems_are_the_harder_third_of_those_solved() -> None:
    right = [0, 4, 1, 3, 0, 2, 2, 1]  # six are solved; two of them make a third
    passed = np.array([[k < c for k in range(4)] for c in right])
    draws = Draws(passed, *(np.zeros_like(passed, int) for _ in range(2)), passed, passed * 1.0)
    assert np.flatnonzero(breadth.hard_problems(draws)).tolist() == [2, 7]
    stacked = draws.over(lambda array: np.stack([array, array[::-1]]))
    assert [np.flatnonzero(row).tolist() for row in breadth.hard_problems(stacked)] == [[2, 7], [0, 5]]
    nothing = replace(draws, passed=np.zeros_like(passed))
    assert not breadth.hard_problems(nothing).any()


def test_an_unchanged_model_loses_nothing_on_its_hard_problems() -> None:
    """Labelled and measured on the same samples, the hard problems seem to gain; on others they do not."""
    rng = np.random.default_rng(3)
    honest, faked = [], []
    for _ in range(200):
        law = Law(rng.random(60))
        before, now = law.draw(16, rng), law.draw(4, rng)
        pass_now = passes.measure(now, 1)
        honest.append(contrast(pass_now, breadth.measure_baseline(before, 4), "paired", -1).worsening)
        labelled = breadth.hard_problems(before.part(0, 4)).astype(float)
        on_same = Values(before.part(0, 4).passed.mean(axis=-1), labelled)
        faked.append(contrast(pass_now, on_same, "paired", -1).worsening)
    error = np.std(honest) / math.sqrt(200)
    assert abs(np.mean(honest)) < 4 * error
    assert abs(np.mean(faked)) > 8 * error


def with_rates(rates: Any, samples: int) -> Draws:
    """Draws whose pass rates are exactly these."""
    passed = np.array([[k < round(rate * samples) for k in range(samples)] for rate in rates])
    return Draws(passed, *(np.zeros_like(passed, int) for _ in range(2)), passed, passed * 1.0)


def test_participation_of_constructed_changes() -> None:
    samples = 10_000  # so many that no sampling noise is taken off
    before = with_rates([0.0] * 10, samples)
    for share in (1, 2, 5, 10):
        now = with_rates([1.0] * share + [0.0] * (10 - share), samples)
        assert breadth.participation_ratio(before, now) == pytest.approx(share / 10)
    mixed = breadth.participation_ratio(before, with_rates([0.8, 0.4] + [0.0] * 8, samples))
    assert mixed == pytest.approx(1.2**2 / (10 * (0.64 + 0.16)), rel=1e-3)
    assert breadth.participation_ratio(before, before) is None


def test_participation_takes_sampling_noise_off() -> None:
    """Every problem gains .3; with 8 samples the plain ratio would say .9 or less."""
    rng = np.random.default_rng(5)
    before, now = Law(np.full(4000, 0.3)).draw(8, rng), Law(np.full(4000, 0.6)).draw(8, rng)
    change = now.passed.mean(axis=-1) - before.passed.mean(axis=-1)
    assert change.sum() ** 2 / (4000 * (change**2).sum()) < 0.7
    assert breadth.participation_ratio(before, now) == pytest.approx(1.0, abs=0.05)


def test_lost_coverage_by_hand() -> None:
    before = with_rates([0.0, 0.25, 0.5, 0.5, 0.75, 1.0], 4)  # solved twice or more: the last four
    now = with_rates([0.0, 0.0, 0.0, 0.25, 1.0, 0.0], 4)
    assert breadth.lost_coverage(before, now) == pytest.approx(2 / 4)
    assert breadth.lost_coverage(with_rates([0.0, 0.25], 4), with_rates([1.0, 1.0], 4)) is None


def test_unlearning_all_mistakes_but_one_is_no_entrenchment() -> None:
    """Of 8 answers 4, 2 and 2 are wrong in three ways; then the last two ways are right answers."""
    ways = np.array([[0, 0, 0, 0, 1, 1, 2, 2]])
    before, after = (
        Draws(passed, ways, ways, passed, ways * 1.0) for passed in (np.zeros((1, 8), bool), ways > 0)
    )
    assert fractions(agreement.wrong_alike(after)) == [12 / 56]
    assert fractions(agreement.wrong_alike(before)) == [16 / 56]
    assert fractions(agreement.among_wrong(after)) == [1.0]


def test_learning_to_write_programs_that_run_is_no_entrenchment() -> None:
    """One right answer in four and three mistakes, at first half of all crash."""
    rng = np.random.default_rng(0)
    ways = rng.integers(0, 4, (4000, 16))
    crashed = rng.random(ways.shape) < 0.5
    before, after = (
        Draws(ran & (ways == 0), ways, np.where(ran, ways, -1), ran, ways * 1.0)
        for ran in (~crashed, np.ones_like(crashed))
    )
    values = [agreement.wrong_alike(draws) for draws in (before, after)]
    found = contrast(values[1], values[0], "paired", 1)
    assert found.baseline == pytest.approx(3 / 16, abs=0.01)
    assert abs(found.worsening) < 3 * found.se


# Recycling.


def test_novelty_by_hand() -> None:
    def with_shapes(shapes: list[list[int]]) -> Draws:
        shape = np.array(shapes)
        return Draws(shape >= 0, shape, shape, shape >= 0, shape * 1.0)

    current = with_shapes([[0, 0, 1, 5], [2, -1, -1, 3], [-1, -1, -1, -1], [4, 4, 4, 4]])
    archive = with_shapes([[0, 7, 7], [2, 3, 9], [0, 1, 2], [-1, -1, -1]])
    whole = recycling.right_ones(archive)
    assert whole.tolist() == [3, 3, 3, 0]
    assert fractions(recycling.novelty(current, archive, whole)) == [0.5, 0.0, None, None]
    stacked = [draws.over(lambda array: np.stack([array, array[::-1]])) for draws in (current, archive)]
    both = recycling.novelty(*stacked, np.stack([whole, whole[::-1]]))
    assert both.num.tolist() == [[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]]
    # Of two archived ones drawn at random: program 0 is missed by one pair of three, 1 and 5 by all.
    some = recycling.novelty(current, archive, np.array([2, 0, 2, 0]))
    assert fractions(some)[0] == pytest.approx((1 / 3 + 1 / 3 + 1 + 1) / 4)
    assert fractions(some)[1] is None


def test_wrong_answers_are_not_recycled() -> None:
    """The wrong ones repeat the archive to the letter, the right ones never."""
    shape = np.array([[0, 1, 2, 3]])
    passed = np.array([[True, False, True, False]])
    old = Draws(passed, np.array([[7, 1, 8, 3]]), shape, passed, shape * 1.0)
    now = Draws(passed, shape, shape, passed, shape * 1.0)
    assert fractions(recycling.novelty(now, old, recycling.right_ones(old))) == [1.0]


def test_no_more_is_compared_than_round_0_can_tell_of() -> None:
    shape = np.zeros((3, 4), int)
    base, archive = (
        Draws(np.array(rows) > 0, shape, shape, shape >= 0, shape * 1.0)
        for rows in (
            [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]],
            [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]],
        )
    )
    assert recycling.comparable(base, archive).tolist() == [2, 1, 0]


def novelty_error(parses: float) -> float:
    """Mean of novelty less what was expected where nothing changes, in its standard errors."""
    rng = np.random.default_rng(11)
    law = Law(np.full(3000, 0.2), kinds=(0.4, 0.3, 0.2, 0.1), parses=parses)
    before, now, archive = law.draw(32, rng), law.draw(8, rng), law.draw(24, rng)
    archived = recycling.comparable(before, archive)
    expected = recycling.expected_novelty(before, archived)
    found = contrast(recycling.novelty(now, archive, archived), expected, "paired", -1)
    assert found.units > 500
    return float(found.worsening / found.se)


@pytest.mark.parametrize("parses", [1.0, 0.8])
def test_an_unchanged_model_is_as_novel_as_expected(parses: float) -> None:
    assert abs(novelty_error(parses)) < 4.0


# Contrasts.


def test_a_paired_contrast_by_hand() -> None:
    before = Values(np.array([1.0, 2.0, 6.0, 9.0]), np.array([1.0, 1.0, 2.0, 0.0]))
    now = Values(np.array([0.9, 1.7, 2.5, 1.0]), np.array([1.0, 1.0, 1.0, 1.0]))
    losses = np.array([0.1, 0.3, 0.5])  # the last unit said nothing before
    found = contrast(now, before, "paired", -1)
    assert (found.value, found.baseline) == (pytest.approx(1.7), pytest.approx(2.0))
    assert found.worsening == pytest.approx(losses.mean())
    assert found.se == pytest.approx(losses.std(ddof=1) / math.sqrt(3))
    assert found.units == 3
    assert contrast(now, before, "paired", 1).worsening == pytest.approx(-losses.mean())
    relative = contrast(now, before, "relative", -1)
    assert relative.worsening == pytest.approx(losses.mean() / 2.0)
    assert relative.se == pytest.approx(found.se / 2.0)


def test_a_ratio_contrast_by_hand() -> None:
    before = Values(np.array([2.0, 1.0, 0.0]), np.array([2.0, 4.0, 0.0]))  # .5
    now = Values(np.array([1.0, 0.0, 1.0]), np.array([4.0, 2.0, 2.0]))  # .25
    found = contrast(now, before, "ratio", -1)
    assert (found.value, found.baseline, found.worsening) == (0.25, 0.5, 0.25)
    old = np.array([2 - 0.5 * 2, 1 - 0.5 * 4, 0.0]) / 2.0  # residuals over the mean denominator
    new = np.array([1 - 0.25 * 4, 0 - 0.25 * 2, 1 - 0.25 * 2]) / (8 / 3)
    assert found.se == pytest.approx(np.std(new - old, ddof=1) / math.sqrt(3))
    assert found.units == 2


@pytest.mark.parametrize(
    ("form", "measure"),
    [
        ("paired", lambda d: passes.measure(d, 1)),
        ("relative", lambda d: richness.measure(d, 2)),
        ("ratio", audit.precision),
        ("ratio", judgement.measure),
    ],
    ids=["paired", "relative", "ratio of precision", "ratio of pairs"],
)
def test_the_standard_error_is_the_spread_between_repetitions(form: Form, measure: Measure) -> None:
    """400 repetitions with new problems each; a ratio of the two within 15 %, four of its own errors."""
    rng = np.random.default_rng(17)
    found: list[Contrast] = []
    for _ in range(400):
        law = Law(rng.beta(2.0, 2.0, 60), kinds=(0.6, 0.2, 0.1, 0.1))
        found.append(contrast(measure(law.draw(8, rng)), measure(law.draw(24, rng)), form, -1))
    worsening = np.array([c.worsening for c in found])
    said = math.sqrt(np.mean([c.se**2 for c in found]))
    assert worsening.std(ddof=1) / said == pytest.approx(1.0, abs=0.15)
    assert abs(worsening.mean()) < 4 * said / math.sqrt(400)


def test_the_standard_error_of_a_ratio_is_the_bootstraps() -> None:
    rng = np.random.default_rng(19)
    law = Law(rng.random(150))
    before, now = (audit.precision(law.draw(n, rng)) for n in (32, 8))
    index = rng.integers(150, size=(4000, 150))
    again = contrast(now[index], before[index], "ratio", -1).worsening
    assert contrast(now, before, "ratio", -1).se == pytest.approx(again.std(), rel=0.08)


@pytest.mark.parametrize("form", ["paired", "relative", "ratio"])
def test_stacked_contrasts_are_those_of_each_alone(form: Form) -> None:
    rng = np.random.default_rng(23)
    now, before = (Values(rng.random((4, 30)), rng.integers(0, 3, (4, 30)).astype(float)) for _ in range(2))
    together = contrast(now, before, form, -1)
    for i in range(4):
        alone = contrast(now[i], before[i], form, -1)
        for name in ("value", "baseline", "worsening", "se", "units"):
            assert getattr(together, name)[i] == pytest.approx(getattr(alone, name))


def test_t_is_the_excess_over_the_margin_in_standard_errors() -> None:
    found = Contrast(*(np.array(x) for x in (0.4, 0.5, 0.1, 0.02, 50)))
    assert found.t(0.04) == pytest.approx(3.0)
    assert found.t(0.04, seed_noise=0.015) == pytest.approx(0.06 / 0.025)
    assert found.t(0.2) < 0.0
    surely = replace(found, se=np.array(0.0))
    assert [surely.t(margin) for margin in (0.05, 0.1, 0.2)] == [np.inf, -np.inf, -np.inf]
    assert replace(found, units=np.array(MIN_UNITS - 1)).t(0.0) == -np.inf
    assert replace(found, units=np.array(MIN_UNITS)).t(0.0) == pytest.approx(5.0)


def test_a_level_says_how_many_tell_it() -> None:
    values = Values(np.array([1.0, 1.0, 5.0, 7.0]), np.array([1.0, 2.0, 0.0, 7.0]))
    told = np.array([1.0, 0.5, 1.0])
    mean, se, count = level(values)
    assert (mean, se, count) == (
        pytest.approx(told.mean()),
        pytest.approx(told.std(ddof=1) / math.sqrt(3)),
        3,
    )
    assert level(Values(np.zeros(3), np.zeros(3))) == (0.0, 0.0, 0)
    pooled = Values(np.array([1.0, 1.0]), np.array([1.0, 3.0]))
    assert level(pooled, ratio=True)[0] == 0.5


# Reference texts.


def exact_kl(p: Array, q: Array) -> float:
    return float((p * np.log(p / q)).sum(axis=-1).mean())


def test_coarse_kl_is_a_lower_bound_of_the_true_one() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        p, q = (rng.dirichlet(np.full(40, 0.3), (3, 8)) + 1e-6 for _ in range(2))
        p, q = (law / law.sum(axis=-1, keepdims=True) for law in (p, q))
        found = coarse_kl(scored(p), scored(q))
        assert 0.0 <= found <= exact_kl(p, q) + 1e-12
        assert coarse_kl(scored(p), scored(p)) == pytest.approx(0.0, abs=1e-12)


def test_coarse_kl_is_exact_where_the_likeliest_tokens_are_all() -> None:
    rng = np.random.default_rng(1)
    p, q = (rng.dirichlet(np.ones(20), (3, 8)) for _ in range(2))
    assert coarse_kl(scored(p), scored(q)) == pytest.approx(exact_kl(p, q))


def test_coarse_kl_lumps_what_one_of_the_two_does_not_list() -> None:
    """Words 0 to 17 are listed by both, two more by either alone: those are in the rest of both."""
    p, q = np.full((1, 1, 40), 1e-3), np.full((1, 1, 40), 1e-3)
    p[..., :18], q[..., :18] = 1.0, np.arange(1.0, 19.0)
    p[..., 18:20] = q[..., 20:22] = 0.5
    p, q = (law / law.sum() for law in (p, q))
    coarse = [np.append(law[0, 0, :18], law[0, 0, 18:].sum()) for law in (p, q)]
    assert coarse_kl(scored(p), scored(q)) == pytest.approx(exact_kl(*coarse))


def test_entropy_is_a_lower_bound_and_the_tail_is_what_is_left() -> None:
    for seed in range(5):
        law = np.random.default_rng(seed).dirichlet(np.full(60, 0.5), (4, 10))
        found = stack(scored(law))
        exact = -(law * np.log(law)).sum(axis=-1)
        tail = np.sort(law, axis=-1)[..., :40].sum(axis=-1)
        assert np.allclose(found.tail, tail)
        assert np.allclose(found.top, law.max(axis=-1))
        assert np.allclose(found.nll, -np.log(law[..., 0]))
        assert (found.entropy <= exact + 1e-12).all()
        assert (exact <= found.entropy + found.tail * math.log(40) + 1e-12).all()
        narrow = law[..., :20] / law[..., :20].sum(axis=-1, keepdims=True)
        assert np.allclose(stack(scored(narrow)).entropy, -(narrow * np.log(narrow)).sum(axis=-1))


def test_texts_of_unequal_length_are_stacked_with_gaps() -> None:
    law = np.random.default_rng(0).dirichlet(np.ones(30), (2, 5))
    long, other = scored(law)
    short = TextScore("s", other.logprobs[:2], other.top_ids[:40], other.top_logprobs[:40])
    found = stack([long, short])
    assert found.present.tolist() == [[True] * 5, [True, True, False, False, False]]
    surprised = surprise.measure(found)
    assert surprised.den.tolist() == [5.0, 2.0]
    assert surprised.num[1] == pytest.approx(-sum(other.logprobs[:2]))


def noisy_positions(entropy: Array, rng: np.random.Generator, noise: float) -> Positions:
    measured = entropy + noise * rng.standard_normal(entropy.shape)
    shape = entropy.shape
    return Positions(np.ones(shape, bool), measured, measured, np.zeros(shape), np.zeros(shape))


def test_two_equal_rounds_lose_no_forks_though_labels_of_round_0_say_so() -> None:
    """Two equally noisy scorings of one law, 100 times: no loss; labelled on the first alone there is one."""
    rng = np.random.default_rng(29)
    fair, unfair, opened = [], [], []
    for _ in range(100):
        entropy = rng.gamma(2.0, size=(24, 50))
        before, now = (noisy_positions(entropy, rng, 0.5) for _ in range(2))
        places = forks.labels(before, now)[0]
        fair.append(loss(now, before, places))
        unfair.append(loss(now, before, forks.labels(before, before)[0]))
        opened.append(loss(now, before, forks.labels(now, now)[0]))
    error = np.std(fair) / 10.0
    assert abs(np.mean(fair)) < 4 * error
    assert np.mean(unfair) > 10 * error
    assert np.mean(opened) < -10 * error


def loss(now: Positions, before: Positions, places: Array) -> float:
    values = [forks.entropy_at(each, places) for each in (now, before)]
    return float(contrast(values[0], values[1], "relative", -1).worsening)


def test_labels_do_not_care_which_round_is_which() -> None:
    rng = np.random.default_rng(31)
    one, other = stack(scored(jittered(LAW, rng, 0.5))), stack(scored(LAW))
    for mine, theirs in zip(forks.labels(one, other), forks.labels(other, one), strict=True):
        assert np.array_equal(mine, theirs)


def test_forks_and_locks_are_shares_of_the_positions_that_exist() -> None:
    rng = np.random.default_rng(37)
    entropy = rng.gamma(2.0, size=(20, 50))
    found = replace(noisy_positions(entropy, rng, 0.0), present=rng.random((20, 50)) < 0.7)
    open_places, sure_places = forks.labels(found, found)
    total = found.present.sum()
    assert open_places.sum() == pytest.approx(0.2 * total, abs=2)
    assert sure_places.sum() == pytest.approx(0.5 * total, abs=2)
    assert not (open_places & sure_places).any()
    assert not (~found.present & (open_places | sure_places)).any()
    assert entropy[open_places].min() > entropy[found.present & ~open_places].max()


def test_dead_positions_are_those_with_nothing_to_choose() -> None:
    law = np.full((1, 4, 30), 1e-9)
    law[0, :, 0] = [0.9995, 0.9989, 0.5, 0.99999]
    law[0, :, 1] = 1.0 - law[0].sum(axis=-1) + law[0, :, 1]
    values = forks.dead(stack(scored(law)))
    assert (values.num[0], values.den[0]) == (2.0, 4.0)


def test_what_is_read_off_texts_by_hand() -> None:
    law = np.full((TEXTS, 10, 30), 0.5 / 29)
    law[..., 0] = 0.5
    law[:, 5:, 0], law[:, 5:, 1:] = 0.98, 0.02 / 29  # half of the positions are locks
    law = jittered(law, np.random.default_rng(1), 1e-6)  # or all forks would be tied
    now = law.copy()
    now[:, 5:, 0] -= 0.01
    now[:, 5:, 1] += 0.01
    found = suite.on_texts(stack(scored(law)), stack(scored(now)))
    assert found["lock_leakage"].worsening == pytest.approx(0.01, abs=1e-5)
    assert found["reference_nll"].worsening == pytest.approx(0.5 * math.log(0.98 / 0.97), abs=1e-5)
    assert found["fork_loss"].worsening == pytest.approx(0.0, abs=1e-5)
    assert found["dead_share"].worsening == 0.0


@pytest.mark.parametrize("name", ["reference_nll", "fork_loss", "lock_leakage", "dead_share"])
def test_what_is_read_off_texts_does_not_move_with_their_length(name: Any) -> None:
    rng = np.random.default_rng(41)
    now = jittered(LAW, rng, 0.3)
    short = suite.on_texts(stack(scored(LAW)), stack(scored(now)))[name]
    twice = [np.concatenate([law, law], axis=1) for law in (LAW, now)]
    long = suite.on_texts(*(stack(scored(law)) for law in twice))[name]
    assert long.worsening == pytest.approx(float(short.worsening))
    assert long.t(0.0) == pytest.approx(float(short.t(0.0)))


def test_a_twin_gap_is_what_the_original_gained_more() -> None:
    one = np.ones(12)
    rng = np.random.default_rng(43)
    original, twin, both = rng.random(12) * 0.1 + 0.3, rng.random(12) * 0.1, rng.random(12)
    before = Values(both, one), Values(both, one)
    now = Values(both + original, one), Values(both + twin, one)
    found = suite.twin_gap(now, before)
    assert found.worsening == pytest.approx((original - twin).mean())
    assert found.se == pytest.approx((original - twin).std(ddof=1) / math.sqrt(12))


# Guards.


def test_loops() -> None:
    gram = list(range(20))
    assert degeneracy.loops([*gram, 77, *gram, 78, *gram])
    assert not degeneracy.loops([*gram, 77, *gram, *list(range(100, 120))])
    assert not degeneracy.loops(([*gram[:-1], 99]) * 2 + gram)
    assert degeneracy.loops([5] * 22)
    assert not degeneracy.loops([5] * 21)
    assert not degeneracy.loops([])
    assert not degeneracy.loops(range(1000))


def test_the_degenerate_limit_rises_and_is_never_below_its_floor() -> None:
    for of in (8, 60, 480, 4000):
        limits = degeneracy.limit(np.arange(of + 1.0), np.float64(of), 0.05)
        assert (np.diff(limits) >= 0).all()
        assert limits.min() >= 0.05
        assert limits.max() <= 1.0
        share = np.arange(of + 1) / of
        assert (limits >= 3 * share / (1 + 2 * share) - 1e-12).all()  # three times the odds, at least
    assert degeneracy.limit(np.float64(0), np.float64(1e6), 0.05) == 0.05
    assert degeneracy.limit(np.float64(2e5), np.float64(1e6), 0.05) == pytest.approx(3 / 7, abs=0.005)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.4, 0.8])
def test_share_guards_hardly_ever_speak_by_chance(share: float) -> None:
    """100,000 rounds of 120 answers with 480 at round 0."""
    rng = np.random.default_rng(47)
    before, now = rng.binomial(480, share, 100_000), rng.binomial(120, share, 100_000)
    bound = degeneracy.limit(before, np.float64(480), 0.05)
    assert degeneracy.surely_above(now, np.float64(120), bound).mean() < 2e-5


def test_a_share_at_the_floor_is_no_reason() -> None:
    """Round 0 has none, later rounds the tolerated share itself: past it by chance once in 1,000 rounds."""
    now = np.random.default_rng(53).binomial(120, 0.05, 100_000)
    alarms = degeneracy.surely_above(now, np.float64(120), np.float64(0.05)).mean()
    assert alarms < 1.5e-3
    assert degeneracy.surely_above(np.float64(60), np.float64(120), np.float64(0.05))
    assert not degeneracy.surely_above(np.float64(0), np.float64(120), np.float64(0.05))
    assert degeneracy.surely_above(np.float64(120), np.float64(120), np.float64(0.9))


def test_lengths_run_away_when_they_surely_double_or_halve() -> None:
    rng = np.random.default_rng(59)
    before = rng.normal(4.0, 0.3, (20_000, 60))
    for factor, said in ((1.0, False), (1.5, False), (3.0, True), (1 / 3, True), (0.7, False)):
        now = before + math.log(factor) + rng.normal(0.0, 0.3, before.shape)
        mean, se = degeneracy.length_change(before, now)
        assert (degeneracy.runaway(mean, se) == said).all()
        assert mean.mean() == pytest.approx(math.log(factor), abs=1e-3)
    edge = before + math.log(2.0) + rng.normal(0.0, 0.3, before.shape)
    assert degeneracy.runaway(*degeneracy.length_change(before, edge)).mean() < 1e-3


BAD: dict[str, dict[str, Any]] = {
    "truncated_share": {"cut": 0.9},
    "loops_share": {"loops": 0.6},
    "unparsable_share": {"unparsable": 0.9},
    "length": {"length": 400.0},
}


@pytest.mark.parametrize("name", BAD)
def test_a_guard_finds_what_it_is_for_and_nothing_else(name: str) -> None:
    rng = np.random.default_rng(61)
    found = guards.readings(evidence(rng, now=traits(rng, 4, **BAD[name])), MonitorConfig())
    assert [guard for guard, reading in found.items() if reading.alarm] == [name]
    healthy = guards.readings(evidence(rng), MonitorConfig())
    assert not any(reading.alarm for reading in healthy.values())
    assert {reading.family for reading in found.values()} == {"guard"}


def test_answers_that_are_no_code_need_not_parse() -> None:
    rng = np.random.default_rng(62)
    seen = evidence(rng, now=traits(rng, 4, unparsable=1.0))
    words = replace(seen, panels={"heldout": replace(seen.panels["heldout"], is_code=False)})
    assert "unparsable_share" not in guards.readings(words, MonitorConfig())


@pytest.mark.parametrize("residual", [0.02, -0.02, math.nan, math.inf])
def test_a_merge_residual_beyond_its_limit_is_an_alarm(residual: float) -> None:
    rng = np.random.default_rng(63)
    assert guards.readings(evidence(rng, merge={"gate_residual": residual}), MonitorConfig())[
        "merge_residual"
    ].alarm
    small = guards.readings(evidence(rng, merge={"gate_residual": -0.005}), MonitorConfig())
    assert not small["merge_residual"].alarm
    assert "merge_residual" not in guards.readings(evidence(rng), MonitorConfig())


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_one_log_prob_that_is_not_finite_is_an_alarm(value: float) -> None:
    rng = np.random.default_rng(64)
    seen = evidence(rng)
    now = [*seen.traits[1][:-1], replace(seen.traits[1][-1], logprob=value)]
    found = guards.readings(replace(seen, traits=(seen.traits[0], now)), MonitorConfig())["not_finite"]
    assert (found.alarm, found.value) == (True, 1.0)
    text = seen.scores.current[3]
    broken = [*seen.scores.current[1:], replace(text, logprobs=(value, value, *text.logprobs[2:]))]
    scores = replace(seen.scores, current=broken)
    found = guards.readings(replace(seen, scores=scores), MonitorConfig())["not_finite"]
    assert (found.alarm, found.value) == (True, 2.0)
    assert found.reason is not None


def test_a_leak_is_named_with_an_example() -> None:
    rng = np.random.default_rng(65)
    found = guards.readings(
        evidence(rng, leaks={"canaries": ["row 3"], "panel_overlap": []}), MonitorConfig()
    )
    assert (found["canaries"].alarm, found["canaries"].value) == (True, 1.0)
    assert "row 3" in (found["canaries"].reason or "")
    assert not found["panel_overlap"].alarm


# What is reported.


def test_the_effective_rank_is_that_of_the_explicit_product() -> None:
    rng = np.random.default_rng(67)
    updates, ranks, norms = [], [], []
    for rank, inside, outside in ((4, 30, 20), (1, 12, 40), (10, 6, 50), (7, 33, 5)):
        a, b = rng.standard_normal((rank, inside)), rng.standard_normal((outside, rank)) * rank
        values = np.linalg.svd(b @ a, compute_uv=False)
        share = values[values > 1e-9] / values.sum()
        ranks.append(np.exp(-(share * np.log(share)).sum()))
        norms.append(values.sum())
        updates.append((torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)))
    assert effective_rank(updates) == pytest.approx(np.average(ranks, weights=norms), rel=1e-3)
    assert effective_rank(updates[1:2]) == pytest.approx(1.0, rel=1e-4)
    nothing = [(a, torch.zeros_like(b)) for a, b in updates]
    assert effective_rank(nothing) == effective_rank([]) == 0.0
    assert effective_rank([*nothing, *updates]) == pytest.approx(effective_rank(updates))


def test_rounds_that_push_one_way_do_not_raise_the_effective_rank() -> None:
    rng = np.random.default_rng(68)
    a, b = (torch.tensor(rng.standard_normal(shape), dtype=torch.float32) for shape in ((3, 20), (25, 3)))
    again = effective_rank([(torch.cat([a, a]), torch.cat([b, b], dim=1))])
    assert again == pytest.approx(effective_rank([(a, b)]), rel=1e-3)


def test_self_bleu_is_that_of_four_answers() -> None:
    alike = ["def f(x):\n    return x + 1\n"] * 4
    varied = ["return sum(a)", "while True: pass", "import os, sys", "print('hello there')"]
    assert surface.self_bleu([alike]) == pytest.approx(1.0)
    low = surface.self_bleu([varied])
    assert low is not None
    assert low < 0.3
    assert surface.self_bleu([[*varied, *alike]]) == low  # more samples do not move it
    assert surface.self_bleu([alike, varied]) == pytest.approx((1.0 + low) / 2)
    assert surface.self_bleu([alike[:3]]) is None


def test_compression_is_that_of_so_many_bytes() -> None:
    rng = np.random.default_rng(69)
    line = "for item in items: total += item"
    random = ["".join(chr(97 + c) for c in rng.integers(0, 26, 2000)) for _ in range(40)]
    low, high = surface.compression_ratio(random), surface.compression_ratio([line] * 3000)
    assert low is not None
    assert high is not None
    assert low < 2.0 < 50.0 < high
    assert surface.compression_ratio(random + [line] * 3000) == low
    assert surface.compression_ratio([line]) is None


def test_what_is_reported_never_speaks() -> None:
    rng = np.random.default_rng(71)
    seen = evidence(rng, law=jittered(LAW, rng, 3.0), merge={"update_effective_rank": 3.0})
    found = reported.readings(seen, 2)
    assert {reading.family for reading in found.values()} == {"report"}
    assert not any(reading.alarm or reading.t is not None for reading in found.values())
    assert all((reading.value is None) == (reading.reason is not None) for reading in found.values())
    assert found["effective_rank"].value == 3.0
    assert found["kl_to_base"].value == positions.coarse_kl(seen.scores.current, seen.scores.baseline)
    assert len(seen.scores.current[0].logprobs) == POSITIONS
