"""Twins of the built-in problems and HumanEval: other names, the same task."""

from __future__ import annotations

import ast
import doctest
import io
import re
from dataclasses import asdict, replace

import pytest

from ssd_loop import sandbox
from ssd_loop.judging import judge
from ssd_loop.problems import Problem, load_panel
from ssd_loop.problems.twins import twin, twins
from ssd_loop.programs import canonical_hash
from tests.rows import function

OWN = [problem for panel in ("train", "probe", "heldout") for problem in load_panel(panel)]
REPORT = list(load_panel("report"))
PAIRS = [(problem, other) for problem in [*OWN, *REPORT] if (other := twin(problem)) is not None]
BY_ID = {problem.id: problem for problem in [*OWN, *REPORT]}
LIMITS = sandbox.Limits()
# A helper's names are not renamed: where they are those of a parameter too, or a built-in's, the hash, which
# knows no scopes, tells the twin's program from the original.
SHARED_NAMES = {
    "column-cipher",
    "HumanEval/10",
    "HumanEval/32",
    "HumanEval/38",
    "HumanEval/50",
    "HumanEval/95",
}


def twin_of(problem_id: str) -> Problem:
    made = twin(BY_ID[problem_id])
    assert made is not None
    return made


def names_in(source: str) -> set[str]:
    """Every name in Python code, without those of attributes."""
    tree = ast.parse(source)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return names | {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_all_but_one_have_a_twin() -> None:
    assert all(twin(problem) is not None for problem in OWN)
    # do_algebra evaluates text.
    assert [problem.id for problem in REPORT if twin(problem) is None] == ["HumanEval/160"]


def test_a_twin_says_the_same_under_other_names() -> None:
    original, other = BY_ID["group-characters-from-right"], twin_of("group-characters-from-right")
    said = original.prompt.replace(original.entry_point, other.entry_point)
    for number, name in enumerate(("text", "size", "separator"), 1):
        said = said.replace(f"{name}: ", f"arg_{number}: ").replace(f"`{name}`", f"`arg_{number}`")
    assert other.prompt == said


@pytest.mark.parametrize(
    ("problem_id", "said"),
    [
        ("HumanEval/13", "Return a greatest common divisor of two integers arg_1 and arg_2"),
        ("HumanEval/32", "find x such that poly(x) = 0."),
        ("HumanEval/37", "takes a list arg_1 and returns a list arg_1' such that"),
        ("HumanEval/47", "Return median of elements in the list arg_1."),
        ("HumanEval/65", "If arg_2 > number of digits, return digits reversed."),
        ("HumanEval/72", "will fly if it's balanced (it is a palindromic list)"),
        ("HumanEval/75", "Knowing that (arg_1) is less then 100."),
        ("HumanEval/95", '({"a":"apple", "b":"banana"}) should return True.'),
        ("HumanEval/162", "Given a string 'arg_1', return its md5"),
        ("segments-share-point", "from (arg_1, arg_2) to (arg_3, arg_4)"),
        ("full-boxes", "how many boxes of `arg_2` items can be filled completely with `arg_1` items."),
        ("percentage-of-whole", "Return what percentage `arg_1` is of `arg_2`."),
    ],
)
def test_words_stay_and_names_go(problem_id: str, said: str) -> None:
    assert said in twin_of(problem_id).prompt


def test_no_twin_names_the_old_function() -> None:
    for problem, other in PAIRS:
        old = problem.entry_point
        shown = f"{other.prompt}\n{other.starter_code}"
        assert not re.search(rf"\b{old}\(|`{old}`|\bdef {old}\b", shown)
        # A name that is a word may stay as the word that it is.
        assert not re.search(rf"\b{old}\b", shown) or re.fullmatch(r"[a-z]{3,}", old)
        for source in (
            other.solution,
            other.check,
            other.preamble,
            *other.probes,
            *(c for c, _ in other.tests),
        ):
            assert old not in names_in(source)
        assert other.entry_point in names_in(other.solution)


def test_only_names_differ() -> None:
    for problem, other in PAIRS:
        if problem.id not in SHARED_NAMES:
            assert canonical_hash(other.solution) == canonical_hash(problem.solution)
        assert len(other.prompt.split("\n")) == len(problem.prompt.split("\n"))
        assert other.prompt.startswith(other.preamble)
        new, old = other.entry_point, problem.entry_point
        assert tuple((call.replace(new, old), want) for call, want in other.tests) == problem.tests
        assert tuple(call.replace(new, old) for call in other.probes) == problem.probes
        renamed = {"prompt", "preamble", "solution", "entry_point", "tests", "probes", "check"}
        before, after = asdict(problem), asdict(other)
        assert {name for name, value in before.items() if after[name] != value} <= renamed


def test_every_solution_of_a_twin_passes_its_tests() -> None:
    rows = [other for problem, other in PAIRS if problem.panel in ("probe", "heldout")]
    rows += [other for problem, other in PAIRS if problem.panel == "report"][::4]
    jobs = [lambda other=other: judge(other, other.solution, limits=LIMITS, execute=True) for other in rows]
    verdicts = sandbox.run_all(jobs, workers=2)
    assert [other.id for other, (outcome, _) in zip(rows, verdicts, strict=True) if outcome != "passed"] == []


@pytest.mark.slow
def test_every_solution_of_a_humaneval_twin_passes_its_check() -> None:
    rows = [other for problem, other in PAIRS if problem.panel == "report"]
    jobs = [lambda other=other: judge(other, other.solution, limits=LIMITS, execute=True) for other in rows]
    verdicts = sandbox.run_all(jobs, workers=2)
    assert [other.id for other, (outcome, _) in zip(rows, verdicts, strict=True) if outcome != "passed"] == []


def test_a_twin_does_not_pass_under_the_old_name() -> None:
    original, other = BY_ID["first-word"], twin_of("first-word")
    assert judge(other, original.solution, limits=LIMITS, execute=True)[0] != "passed"


def test_examples_of_twins_hold() -> None:
    runner = doctest.DocTestRunner(verbose=False)
    for problem, other in PAIRS:
        if problem.panel == "report":
            continue
        scope: dict[str, object] = {}
        exec(other.solution, scope)
        docstring = ast.get_docstring(ast.parse(other.prompt + "    pass\n").body[-1])  # type: ignore[arg-type]
        assert docstring is not None
        found = doctest.DocTestParser().get_doctest(docstring, scope, other.id, None, 0)
        assert found.examples, other.id
        output = io.StringIO()
        runner.run(found, out=output.write)
        assert output.getvalue() == "", other.id


def test_twins_pair_by_id() -> None:
    made = twins(load_panel("heldout"))
    assert [other.id for other in made] == [problem.id for problem in load_panel("heldout")]
    assert {other.panel for other in made} == {"twin"}
    assert made == twins(load_panel("heldout"))
    assert {problem.panel for problem in map(twin, load_panel("heldout")) if problem} == {"heldout"}


def test_new_names_hang_on_the_id_alone() -> None:
    problem = BY_ID["first-word"]
    assert twin_of("first-word").entry_point == "task_t4v3"
    moved = twin(replace(problem, panel="report"))
    assert moved is not None
    assert moved.entry_point == "task_t4v3"
    assert all(re.fullmatch(r"task_[a-z]\d[a-z]\d", other.entry_point) for _, other in PAIRS)


SCALED = replace(
    function("scaled"),
    prompt='''\
import math

def scaled(values: list, *, by=2, **rest):
    """Scale all values by 2, or what `by` says: `[v * by for v in values]`.

    >>> scaled([1], by=3)
    [3]
    >>> list(map(scaled, [[2]]))
    [[4]]

    scaled(["values"], by=1) gives "values by scaled(x)".
    """
''',
    solution="""\
def scaled(items, *, by=2, **rest):
    # scaled(`items`) may be empty: "scaled(items)"
    def times(by, x=0):
        return by * x
    label = f"{by!r} {len(items)} by"
    return [times(by, x=item) for item in items] or rest.get("by", label)
""",
    starter_code="def scaled(values: list, *, by=2, **rest):\n",
    tests=(("scaled([1], by=3)", "[3]"), ("scaled(values=[2])", "[4]"), ("scaled([])", "'2 0 by'")),
    probes=("sorted(scaled([2, 1], by=-1), key=abs)",),
)


def test_keywords_strings_and_inner_functions() -> None:
    other = twin(SCALED)
    assert other is not None
    new = other.entry_point
    assert (
        other.prompt
        == f'''\
import math

def {new}(arg_1: list, *, arg_2=2, **arg_3):
    """Scale all values by 2, or what `arg_2` says: `[v * arg_2 for v in arg_1]`.

    >>> {new}([1], arg_2=3)
    [3]
    >>> list(map({new}, [[2]]))
    [[4]]

    {new}(["values"], arg_2=1) gives "values by scaled(x)".
    """
'''
    )
    assert (
        other.solution
        == f"""\
def {new}(arg_1, *, arg_2=2, **arg_3):
    # {new}(`arg_1`) may be empty: "scaled(items)"
    def times(arg_2, x=0):
        return arg_2 * x
    label = f"{{arg_2!r}} {{len(arg_1)}} by"
    return [times(arg_2, x=item) for item in arg_1] or arg_3.get("by", label)
"""
    )
    assert other.starter_code == f"def {new}(arg_1: list, *, arg_2=2, **arg_3):\n"
    assert [call for call, _ in other.tests] == [f"{new}([1], arg_2=3)", f"{new}(arg_1=[2])", f"{new}([])"]
    assert other.probes == (f"sorted({new}([2, 1], arg_2=-1), key=abs)",)


def test_a_check_that_calls_by_keyword() -> None:
    problem = replace(
        function("root"),
        kind="check",
        check="def check(candidate):\n    assert candidate(x=9) == root(x=9)\n",
    )
    other = twin(problem)
    assert other is not None
    assert other.check == (
        f"def check(candidate):\n    assert candidate(arg_1=9) == {other.entry_point}(arg_1=9)\n"
    )


@pytest.mark.parametrize(
    ("prompt", "solution"),
    [
        ("Write a function that doubles x.", ""),
        ("class Solution:\n    def f(self, x):\n", ""),
        ("def g(x):\n", ""),
        ("def f(x):\n    ...\n\n\ndef f(x):\n", ""),
        ("def f(f):\n", ""),
        ("def f(x, arg_1):\n", ""),
        ("def f(x):\n", "def f(x):\n    return eval('x')\n"),
        ("def f(x):\n", "def f(x):\n    return locals()['x']\n"),
        (
            "def f(x):\n",
            "def f(x):\n    def g():\n        nonlocal x\n        x = 1\n    g()\n    return x\n",
        ),
        ("def f(x):\n", "def f(x):\n    def g(x):\n        return x\n    return g(x=x)\n"),
        ("def f(x):\n", "def f(x):\n    class A:\n        x = 1\n    return A.x\n"),
        ("def f(x):\n", "from m import f\n"),
        ("def f(x):\n", "def f(x):\n    return x +\n"),
        ('def f_1(x):\n    """Say "f_1 and so on"."""\n', ""),
    ],
)
def test_no_twin_where_it_would_not_be_safe(prompt: str, solution: str) -> None:
    name = "f_1" if "f_1" in prompt else "f"
    assert twin(replace(function(name), prompt=prompt, solution=solution)) is None


@pytest.mark.parametrize("kind", ["exact", "shell", "stdin", "text"])
def test_only_functions_have_twins(kind: str) -> None:
    assert twin(replace(function("f"), kind=kind)) is None  # type: ignore[arg-type]
    assert twin(function("f")) is not None
