"""Leaks of panel texts, planted in rows that have none: each is found and named, and nothing else is."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ssd_loop.errors import ConfigError
from ssd_loop.mixing import answer
from ssd_loop.monitors.leaks import (
    CODE_WORDS,
    LEAST_WORDS,
    STATEMENT_WORDS,
    Overlap,
    Said,
    canaries,
    canary_hits,
    grams,
    overlaps,
    said,
    words,
)
from ssd_loop.problems import Problem, load_panel
from ssd_loop.prompts import message

TRAIN = load_panel("train")
PANELS = [problem for panel in ("probe", "heldout", "ood", "report") for problem in load_panel(panel)]
PANEL = said(PANELS)
# HumanEval/31 has the same lines.
IS_PRIME = """\
def is_prime(n):
    if n < 2:
        return False
    for k in range(2, n - 1):
        if n % k == 0:
            return False
    return True
"""
CLEAN = [(f"train/{problem.id}", text) for problem in TRAIN for text in (message(problem), answer(problem))]


def named(panel: str, problem_id: str) -> Problem:
    return next(problem for problem in load_panel(panel) if problem.id == problem_id)


def long_solutions() -> list[Problem]:
    return [problem for problem in PANELS if len(words(problem.solution)) >= CODE_WORDS]


def test_training_prompts_and_solutions_share_nothing_with_the_panels() -> None:
    assert overlaps(CLEAN, PANEL) == []


def test_python_of_other_people_shares_nothing_with_the_panels() -> None:
    library = Path(sysconfig.get_path("stdlib"))
    names = ("bisect", "calendar", "difflib", "fractions", "heapq", "statistics", "textwrap")
    rows = [(name, (library / f"{name}.py").read_text(encoding="utf-8")) for name in names]
    assert overlaps(rows, PANEL) == []


def test_a_planted_prompt_is_found_and_named() -> None:
    leaked = named("heldout", "longest-block-with-mean")
    text = f"Here is a harder one.\n\n```python\n{leaked.prompt.upper()}    ...\n```\nAnd so on."
    found = overlaps([*CLEAN, ("train/x/3", text)], PANEL, [problem.prompt for problem in TRAIN])
    assert [(overlap.row, overlap.problem) for overlap in found] == [
        ("train/x/3", "heldout/longest-block-with-mean")
    ]
    assert "return the longest block of neighbouring numbers" in found[0].words


def test_part_of_a_docstring_is_enough_and_twelve_words_are_not() -> None:
    statement = words(named("heldout", "closest-common-boss").prompt)
    start = statement.index("return")
    for size, hits in ((STATEMENT_WORDS, 1), (STATEMENT_WORDS - 1, 0)):
        told = "So " + " ".join(statement[start : start + size]) + ". So be it."
        assert len(overlaps([("row", told)], PANEL)) == hits


def test_a_planted_solution_is_found_without_its_docstring_too() -> None:
    leaked = named("report", "HumanEval/1")
    body = leaked.solution.rpartition('"""')[2]
    found = overlaps([*CLEAN, ("row", f"def solved(paren_string):{body}")], PANEL)
    assert [(overlap.row, overlap.problem) for overlap in found] == [("row", "report/HumanEval/1")]
    assert len(found[0].words.split()) >= CODE_WORDS


def test_a_short_run_of_code_is_no_leak() -> None:
    found = words(named("probe", "natural-order-sort").solution)
    assert len(found) > CODE_WORDS
    assert overlaps([("row", " ".join(found[: CODE_WORDS - 1]))], PANEL) == []
    assert overlaps([("row", IS_PRIME)], PANEL) == []


@pytest.mark.parametrize("panel", ["probe", "heldout", "ood", "report"])
def test_every_prompt_is_found_in_a_row_that_quotes_it(panel: str) -> None:
    rows = [(f"{problem.panel}/{problem.id}", message(problem)) for problem in load_panel(panel)]
    found = overlaps(rows, PANEL)
    # The 61st of HumanEval differs from the 56th by the brackets alone.
    assert {overlap.row for overlap in found} == {row for row, _ in rows}
    assert {o.row for o in found if o.row != o.problem} == (
        {"report/HumanEval/61"} if panel == "report" else set()
    )


def test_every_long_solution_is_found_but_for_a_table_of_numbers() -> None:
    rows = [(f"{problem.panel}/{problem.id}", answer(problem)) for problem in long_solutions()]
    found = {overlap.row for overlap in overlaps(rows, PANEL)}
    assert len(rows) > 250
    assert {row for row, _ in rows} - found == {"heldout/income-tax-brackets"}


def test_what_several_problems_share_is_wording() -> None:
    wording = "Write a function that solves the task below and explain each of its steps to a new reader."
    other = {f"p/{number}": Said(f"{wording} Task {number}.") for number in range(2)}
    assert overlaps([("row", wording)], other) == []
    assert overlaps([("row", wording)], {"p/0": other["p/0"]}) != []


def test_one_problem_in_two_panels_is_no_wording() -> None:
    leaked = named("heldout", "closest-common-boss")
    panel = said([leaked, replace(leaked, panel="report")])
    assert {o.problem for o in overlaps([("row", leaked.prompt)], panel)} == {"heldout/closest-common-boss"}


def test_what_the_training_task_says_is_known() -> None:
    leaked = named("heldout", "closest-common-boss")
    rows = [("row", leaked.prompt)]
    assert overlaps(rows, PANEL, [leaked.prompt, leaked.solution]) == []
    assert overlaps(rows, PANEL, [problem.prompt for problem in TRAIN]) != []


def test_an_answer_that_repeats_its_task_with_words_left_out_is_no_leak() -> None:
    """SmolLM2-135M skipped four words of its prompt, in round 5 of the default recipe."""
    task = next(problem.prompt for problem in TRAIN if problem.id == "shortest-cover")
    answer = task.replace("\n    or `wanted` is empty", ",\n   ")
    known = [problem.prompt for problem in TRAIN]
    found = overlaps([("row", answer)], PANEL, known)
    assert [overlap.problem for overlap in found] == ["heldout/longest-block-with-mean"]
    assert overlaps([("row", answer)], PANEL, known, {"row": task}) == []


def test_a_leak_is_found_whatever_the_task_was() -> None:
    rows = [(f"{problem.panel}/{problem.id}", problem.prompt) for problem in PANELS]
    known = [problem.prompt for problem in TRAIN]
    for shift in (0, 57, 111):
        tasks = {name: TRAIN[(at + shift) % len(TRAIN)].prompt for at, (name, _) in enumerate(rows)}
        assert {overlap.row for overlap in overlaps(rows, PANEL, known, tasks)} == {name for name, _ in rows}


@pytest.mark.parametrize(
    "text", ["0 1 2 3 4 5 6 7 8 9 10 11 12 13 14", "a b c d e f g h i j k l m n", "[1, 0, 0, 1] * 12"]
)
def test_counting_is_no_leak(text: str) -> None:
    assert overlaps([("row", text * 3)], {"p/count": Said(text * 3, (text * 3,))}) == []


def test_a_short_statement_counts_as_a_whole() -> None:
    short = "Find the shared elements of two given lists."
    assert len(words(short)) == LEAST_WORDS
    panel = {"p/short": Said(short), "p/shorter": Said("Sort the given list.")}
    assert overlaps([("row", f"Task: {short} Sort the given list. Go.")], panel) == [
        Overlap("row", "p/short", "find the shared elements of two given lists")
    ]
    assert overlaps([("row", "Find the shared elements of the two given lists.")], panel) == []


def test_rows_are_read_one_by_one() -> None:
    leaked = named("heldout", "first-word").prompt

    def rows() -> Iterator[tuple[str, str]]:
        for number in range(2000):
            yield str(number), leaked if number == 1234 else "x = sum(values) / len(values)"

    assert [overlap.row for overlap in overlaps(rows(), PANEL)] == ["1234"]


def test_grams_know_words_alone() -> None:
    text = "Return the Sum of all (even) numbers, or 0 where there are none in `values`."
    assert grams(text) == grams("return the sum  of all even\nnumbers or 0 where there are none in values")
    assert len(grams(text)) == len(words(text)) - STATEMENT_WORDS + 1
    assert grams("too short") == frozenset()
    assert grams("a b", 2) == {bytes.fromhex("bb37dea5c027f928")}


def test_canaries_are_five_and_in_no_panel() -> None:
    assert len(set(canaries())) == 5
    problems = [*TRAIN, *PANELS]
    assert canary_hits((problem.id, repr(problem)) for problem in problems) == []
    assert canary_hits((problem.id, message(problem)) for problem in problems) == []


def test_canaries_are_no_panel() -> None:
    with pytest.raises((TypeError, ConfigError)):
        load_panel("canaries")


def test_a_canary_is_found_however_it_is_written() -> None:
    first, *_, last = canaries()
    rows = [
        ("clean", "58 stations"),
        ("as it is", f"The constant is {first}."),
        ("as code", f"CONSTANT = '{last.lower().replace('-', '_')}'"),
        ("with spaces", last.replace("-", " \u2013 ")),
        ("cut", first[:-1]),
    ]
    assert canary_hits(rows) == ["as it is", "as code", "with spaces"]
