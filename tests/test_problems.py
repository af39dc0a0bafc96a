"""The built-in problems: right, complete, disjoint."""

import ast
import copy
import doctest
import io
import itertools
import json
import re
import resource
import signal
import subprocess
import sys
from collections import Counter

import pytest

from ssd_loop import sandbox
from ssd_loop.judging import judge
from ssd_loop.problems import content_hash, load_panel, load_reference

BUILT_IN = ("train", "probe", "heldout", "ood")
PYTHON_PANELS = ("train", "probe", "heldout")
# HumanEval/28 is "".join(strings), and all its tests pass lists of plain one-letter strings: what walks
# over a text and joins what it does not change solves it too, without having seen the task.
JOINS_ANY_STRINGS = {
    ("spell-out-digits", "HumanEval/28"),
    ("decode-backslash-escapes", "HumanEval/28"),
    ("mask-card-number", "HumanEval/28"),
}
LIMITS = sandbox.Limits()


def problems(*panels):
    return [problem for panel in panels for problem in load_panel(panel)]


@pytest.mark.parametrize(("panel", "least"), [("train", 160), ("probe", 64), ("heldout", 96), ("ood", 70)])
def test_panels_are_large_enough_and_have_three_tiers(panel, least):
    rows = load_panel(panel)
    assert len(rows) >= least
    assert set(Counter(row.tier for row in rows)) == {"easy", "medium", "hard"}


def test_ood_has_every_kind():
    kinds = Counter(row.kind for row in load_panel("ood"))
    assert kinds["exact"] >= 30
    assert kinds["shell"] >= 20
    assert kinds["function"] >= 20


def test_report_is_the_whole_of_humaneval():
    assert len(load_panel("report")) == 164


def test_ids_are_unique_over_all_panels():
    ids = Counter(problem.id for problem in problems(*BUILT_IN))
    assert [name for name, count in ids.items() if count > 1] == []


def test_every_python_problem_has_tests_probes_and_a_valid_prompt():
    for problem in problems(*PYTHON_PANELS):
        assert len(problem.tests) >= 5, problem.id
        assert len(problem.probes) >= 5, problem.id
        tree = ast.parse(problem.prompt + "    pass\n")
        function = tree.body[-1]
        assert isinstance(function, ast.FunctionDef), problem.id
        assert function.name == problem.entry_point, problem.id
        assert ast.get_docstring(function), problem.id


def test_content_hash_sees_every_field():
    first, *rest = load_panel("probe")
    assert content_hash(rest) != content_hash([first, *rest])


def test_reference_text_is_there_and_long_enough():
    texts = load_reference()
    assert len(texts) >= 20
    assert all(len(text.text) > 1000 for text in texts)


def test_docstring_examples_hold():
    runner = doctest.DocTestRunner(verbose=False)
    for problem in problems(*PYTHON_PANELS):
        scope = {}
        exec(problem.solution, scope)
        docstring = ast.get_docstring(ast.parse(problem.prompt + "    pass\n").body[-1])
        found = doctest.DocTestParser().get_doctest(docstring, scope, problem.id, None, 0)
        assert found.examples, problem.id
        output = io.StringIO()
        runner.run(found, out=output.write)
        assert output.getvalue() == "", problem.id


@pytest.mark.slow
def test_every_reference_solution_passes_in_the_sandbox():
    def solved(problem):
        answer = problem.answer if problem.kind == "exact" else problem.solution
        return judge(problem, answer, limits=LIMITS, execute=True)

    rows = problems(*BUILT_IN)
    jobs = [lambda problem=problem: solved(problem) for problem in rows]
    verdicts = sandbox.run_all(jobs, workers=2)
    assert [(p.id, v) for p, v in zip(rows, verdicts, strict=True) if v[0] != "passed"] == []


@pytest.mark.slow
def test_repair_tasks_are_broken_as_given():
    for problem in load_panel("ood"):
        if problem.source:
            assert judge(problem, problem.source, limits=LIMITS, execute=True)[0] != "passed", problem.id


def words(problem):
    text = f"{problem.prompt}\n{problem.solution}"
    return re.findall(r"\w+", text.lower())


def grams(rows, n=13):
    found = {}
    for problem in rows:
        tokens = words(problem)
        for start in range(len(tokens) - n + 1):
            found.setdefault(tuple(tokens[start : start + n]), problem.id)
    return found


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations((*BUILT_IN, "report"), 2)))
def test_panels_share_no_13_gram(one, other):
    left, right = grams(load_panel(one)), grams(load_panel(other))
    shared = {(left[gram], right[gram]) for gram in left.keys() & right.keys()}
    assert shared == set()


@pytest.mark.slow
def test_no_solution_of_one_panel_solves_a_problem_of_another():
    """Every train and probe solution against the other panels' tests where the arity fits."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=500, check=True)
    assert {(solver, solved) for solver, solved in json.loads(done.stdout)} - JOINS_ANY_STRINGS == set()


def cross_check():
    """Pairs (solver, solved) over panels. Runs in a process of its own: it has limits and an alarm."""
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    signal.signal(signal.SIGALRM, too_long)
    targets = [
        (problem, arity_of(problem), checker_of(problem))
        for problem in problems("probe", "heldout", "ood", "report")
        if problem.kind in ("function", "check")
    ]
    leaks = []
    for solver in problems("train", "probe"):
        function = defined(solver)
        for problem, arity, passes in targets:
            if (
                problem.panel != solver.panel
                and arity == arity_of(solver)
                and within_a_moment(passes, function)
            ):
                leaks.append((solver.id, problem.id))
    print(json.dumps(leaks))


def arity_of(problem):
    tree = ast.parse(problem.solution)
    function = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == problem.entry_point)
    return len(function.args.args)


def defined(problem):
    scope = {"__name__": "solution"}
    exec(problem.solution, scope)
    return scope[problem.entry_point]


def checker_of(problem):
    if problem.kind == "check":
        scope = {}
        exec(problem.preamble + problem.check, scope)
        return scope["check"]
    cases = [
        ([ast.literal_eval(arg) for arg in ast.parse(call, mode="eval").body.args], ast.literal_eval(value))
        for call, value in problem.tests
    ]

    def passes(function):
        for arguments, expected in cases:
            assert function(*copy.deepcopy(arguments)) == expected

    return passes


def too_long(signum, frame):
    raise TimeoutError


def within_a_moment(passes, function):
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        passes(function)
    except BaseException:
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return True


if __name__ == "__main__":
    cross_check()
