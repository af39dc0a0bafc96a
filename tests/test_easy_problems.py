"""The easy panel of the collapse benchmark: loads by settings alone, right, and apart from other tasks."""

from __future__ import annotations

import ast
import doctest
import io
import json
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from ssd_loop import sandbox
from ssd_loop.config import EvaluateConfig
from ssd_loop.judging import judge_all
from ssd_loop.problems import Problem, load_panel, thin
from ssd_loop.prompts import FUNCTION_MESSAGE, message
from ssd_loop.sources import load_tasks
from tests.rows import fenced, sample
from tests.test_problems import (
    BUILT_IN,
    arity_of,
    checker_of,
    defined,
    grams,
    problems,
    too_long,
    within_a_moment,
)

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "benchmarks" / "collapse" / "easy.jsonl"
SETTINGS = {
    "sources": {
        "heldout": {
            "source": str(SOURCE),
            "prompt_column": "prompt",
            "id_column": "id",
            "columns": {
                "tests": "tests",
                "entry_point": "entry_point",
                "solution": "solution",
                "tier": "tier",
            },
            "checker": "stdin",
        }
    }
}


@cache
def easy() -> tuple[Problem, ...]:
    config = EvaluateConfig.model_validate(SETTINGS)
    return load_tasks(config.sources["heldout"], "heldout", "evaluate.sources.heldout")


def verdicts(rows: Sequence[Problem], texts: Sequence[str]) -> list[tuple[str, str, str | None]]:
    """(id, outcome, behaviour) of one answer to each problem, through the real judge."""
    pairs = [
        (problem, sample(fenced(text), panel="heldout", prompt_id=problem.id))
        for problem, text in zip(rows, texts, strict=True)
    ]
    results = judge_all(pairs, limits=sandbox.Limits(), workers=2, execute=True)
    return [(result.problem_id, result.outcome, result.behaviour) for result in results]


def unsolved(rows: Sequence[Problem]) -> list[tuple[str, str, str | None]]:
    """What the reference solutions of these problems come to, where that is not a behaviour that passes."""
    found = verdicts(rows, [problem.solution for problem in rows])
    return [verdict for verdict in found if verdict[1] != "passed" or not verdict[2]]


def at_once(problem: Problem) -> Problem:
    """The problem with all its calls made by one program: with probes they are not run one by one."""
    return replace(problem, probes=(problem.tests[0][0],))


def test_the_panel_is_large_and_its_ids_are_its_own() -> None:
    rows = SOURCE.read_text(encoding="utf-8").splitlines()
    assert len(rows) == len(easy()) >= 112
    ids = Counter(problem.id for problem in (*easy(), *problems(*BUILT_IN, "report")))
    assert [name for name, count in ids.items() if count > 1] == []
    assert max(Counter(problem.entry_point for problem in easy()).values()) == 1
    assert {problem.tier for problem in easy()} == {"easy"}


def test_every_problem_is_a_function_that_is_called_and_is_shown_as_code() -> None:
    for problem in easy():
        assert problem.kind == "function", problem.id
        assert message(problem) == FUNCTION_MESSAGE.format(prompt=problem.prompt), problem.id
        assert 5 <= len(problem.tests) <= 8, problem.id
        assert len(set(problem.tests)) == len(problem.tests), problem.id
        assert len({expected for _, expected in problem.tests}) > 1, problem.id
        (node,) = ast.parse(problem.prompt).body
        assert isinstance(node, ast.FunctionDef), problem.id
        assert node.returns is not None, problem.id
        assert all(argument.annotation for argument in node.args.args), problem.id


def test_the_example_of_every_docstring_holds() -> None:
    runner = doctest.DocTestRunner(verbose=False)
    for problem in easy():
        docstring = ast.get_docstring(ast.parse(problem.prompt).body[0])  # type: ignore[arg-type]
        scope = {problem.entry_point: defined(problem)}
        found = doctest.DocTestParser().get_doctest(docstring or "", scope, problem.id, None, 0)
        assert len(found.examples) == 1, problem.id
        output = io.StringIO()
        runner.run(found, out=output.write)
        assert output.getvalue() == "", problem.id


def test_every_reference_solution_passes() -> None:
    assert unsolved([at_once(problem) for problem in easy()]) == []


def test_some_reference_solutions_pass_call_by_call() -> None:
    assert unsolved(thin(easy(), 8)) == []


@pytest.mark.slow
def test_every_reference_solution_passes_call_by_call() -> None:
    assert unsolved(easy()) == []


def test_an_answer_that_returns_nothing_fails() -> None:
    rows = thin(easy(), 16)
    found = verdicts(rows, [p.solution.partition("\n")[0] + "\n    return None\n" for p in rows])
    assert {outcome for _, outcome, _ in found} == {"failed"}


@pytest.mark.parametrize("panel", [*BUILT_IN, "report"])
def test_no_13_words_are_shared_with_a_built_in_panel(panel: str) -> None:
    mine, theirs = grams(easy()), grams(load_panel(panel))
    assert {(mine[gram], theirs[gram]) for gram in mine.keys() & theirs.keys()} == set()


def test_no_training_task_is_asked() -> None:
    """Neither by name, nor does an easy solution pass the tests of a training task of its arity."""
    names = {problem.entry_point for problem in problems("train")}
    assert names & {problem.entry_point for problem in easy()} == set()
    command = [sys.executable, "-m", "tests.test_easy_problems"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    assert json.loads(done.stdout) == []


def cross_check() -> None:
    """Pairs (solver, solved). Runs in a process of its own: it has limits and an alarm."""
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    signal.signal(signal.SIGALRM, too_long)
    targets = [(problem, arity_of(problem), checker_of(problem)) for problem in problems("train")]
    solved = [
        (solver.id, problem.id)
        for solver, arity, function in [(p, arity_of(p), defined(p)) for p in easy()]
        for problem, wanted, passes in targets
        if arity == wanted and within_a_moment(passes, function)
    ]
    print(json.dumps(solved))


if __name__ == "__main__":
    cross_check()
