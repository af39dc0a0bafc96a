"""Answers and their outcomes, in the real sandbox."""

from __future__ import annotations

import pytest

from ssd_loop.judging import answer_of, judge, judge_all, running
from ssd_loop.problems import Case, Problem, load_panel
from ssd_loop.records import Result
from ssd_loop.sandbox import Limits
from tests.rows import fenced, function, sample

LIMITS = Limits(cpu_s=1.0)
DOUBLE = function(
    "double", tests=(("double(2)", "4"), ("double([1])", "[1, 1]")), probes=("double('a')", "double(None)")
)
RIGHT = "def double(x):\n    return x * 2\n"
COUNT = Problem(
    panel="ood",
    id="count",
    kind="shell",
    prompt="Count the lines of notes.txt.",
    cases=(Case({"notes.txt": "a\nb\n"}, "2\n"), Case({"notes.txt": ""}, "0")),
)
CHECK = Problem(
    panel="report",
    id="check",
    kind="check",
    prompt="import math\n\ndef root(x):\n",
    entry_point="root",
    preamble="import math\n",
    check="def check(candidate):\n    assert candidate(9) == 3\n    assert candidate(2) == math.sqrt(2)\n",
)


def exact(answer: str) -> Problem:
    return Problem(panel="ood", id="sum", kind="exact", prompt="How many?", answer=answer)


def verdict(problem: Problem, answer: str | None, execute: bool = True) -> tuple[str, str | None]:
    return judge(problem, answer, limits=LIMITS, execute=execute)


@pytest.mark.parametrize("panel", ["train", "probe", "heldout", "ood", "report"])
def test_built_in_solutions_pass_and_a_useless_one_fails(panel: str) -> None:
    kinds: dict[str, list[Problem]] = {}
    for problem in load_panel(panel):
        kinds.setdefault(problem.kind, []).append(problem)
    for kind, problems in kinds.items():
        useless = {"shell": "true", "exact": "-123456789"}.get(kind)
        for problem in problems[:3]:
            solution = problem.answer if kind == "exact" else problem.solution
            assert verdict(problem, solution)[0] == "passed", problem.id
            wrong = useless or f"def {problem.entry_point}(*_):\n    return Ellipsis\n"
            assert verdict(problem, wrong)[0] == "failed", problem.id


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (RIGHT, "passed"),
        ("def double(x):\n    return x + x\n", "passed"),
        ("def double(x):\n    return x * 3\n", "failed"),
        ("def double(x):\n    return str(x * 2)\n", "failed"),
        ("def double(x):\n    return 4\n", "failed"),
        ("def double(x):\n    raise ValueError\n", "failed"),
        ("class A:\n  def __eq__(self, b):\n    return True\ndef double(x):\n  return A()\n", "failed"),
        ("def other(x):\n    return x * 2\n", "crashed"),
        ("def double(x:\n", "crashed"),
        ("import sys\nsys.exit(0)\n", "crashed"),
        ("def double(x):\n    while True:\n        pass\n", "timeout"),
    ],
)  # fmt: skip
def test_a_function_is_called_and_compared(code: str, outcome: str) -> None:
    assert verdict(DOUBLE, code)[0] == outcome


def test_an_answer_may_leave_out_what_the_prompt_gives() -> None:
    problem = function("area", preamble="import math\n", tests=(("area(0)", "0.0"),))
    assert verdict(problem, "def area(r):\n    return math.pi * r\n")[0] == "passed"


def test_behaviour_is_what_the_probes_return() -> None:
    same = "def double(value):\n    return value + value if value is not None else None * 2\n"
    wrong_but_same = "def double(x):\n    return x * 2 if x != 2 else 5\n"
    other = "def double(x):\n    return x * 2 if x != 'a' else 'b'\n"
    outcome, behaviour = verdict(DOUBLE, RIGHT)
    assert behaviour is not None
    assert verdict(DOUBLE, same) == (outcome, behaviour)
    assert verdict(DOUBLE, wrong_but_same) == ("failed", behaviour)
    assert verdict(DOUBLE, other)[1] not in (None, behaviour)
    assert verdict(DOUBLE, "def double(x:\n")[1] is None


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("def root(x):\n    return math.sqrt(x)\n", "passed"),
        ("def root(x):\n    return 3\n", "failed"),
        ("def wrong(x):\n    return 3\n", "failed"),
    ],
)
def test_a_hidden_check_decides(code: str, outcome: str) -> None:
    assert verdict(CHECK, code) == (outcome, None)


@pytest.mark.parametrize(
    ("command", "outcome"),
    [
        ("wc -l < notes.txt", "passed"),
        ("grep -c '' notes.txt || true", "passed"),
        ("echo 2", "failed"),
        ("wc -l notes.txt", "failed"),
        ("cat missing.txt", "failed"),
        ("wc -l < notes.txt; rm notes.txt", "passed"),
        ("wc -l < notes.txt; exit 3", "failed"),
        ("while :; do :; done", "timeout"),
    ],
)
def test_a_shell_answer_prints_what_every_case_expects(command: str, outcome: str) -> None:
    assert verdict(COUNT, command)[0] == outcome


@pytest.mark.parametrize(
    ("text", "answer", "outcome"),
    [
        ("7", "7", "passed"),
        ("3 + 4 = 7.", "7", "passed"),
        ("First 3, then 4.\n\n**7**", "7", "passed"),
        ("It costs 1,300 dollars", "1300", "passed"),
        ("It costs 1,300, in all", "1300", "passed"),
        ("1,234,567.50", "1234567.5", "passed"),
        ("$5.25", "5.25", "passed"),
        ("$5.250", "5.25", "passed"),
        ("7.0", "7", "passed"),
        ("-3", "-3", "passed"),
        ("It is .5", "0.5", "passed"),
        ("50%", "50", "passed"),
        ("3", "-3", "failed"),
        ("7 apples, not 8", "7", "failed"),
        ("7.01", "7", "failed"),
        ("1,300", "1.3", "failed"),
        ("seven", "7", "no_code"),
        ("", "7", "no_code"),
    ],
)
def test_an_exact_answer_is_the_last_number(text: str, answer: str, outcome: str) -> None:
    problem = exact(answer)
    assert verdict(problem, answer_of(problem, text))[0] == outcome


def test_equal_numbers_behave_alike() -> None:
    problem = exact("7")
    assert verdict(problem, "8")[1] == verdict(problem, "8.00")[1] != verdict(problem, "9")[1]


def test_the_answer_to_a_code_task_is_its_last_block() -> None:
    assert answer_of(DOUBLE, fenced(RIGHT)) == RIGHT + "\n"
    assert answer_of(DOUBLE, "the answer is 4") is None


def test_every_sample_gets_its_result_in_order() -> None:
    wrong = "def double(x):\n    return 0\n"
    texts = [fenced(wrong), fenced(RIGHT), "no code", fenced(wrong)]
    pairs = [
        (DOUBLE, sample(text, panel="heldout", prompt_id="double", sample_index=i))
        for i, text in enumerate(texts)
    ]
    pairs.append((exact("7"), sample("It is 7", panel="ood", prompt_id="sum", sample_index=9)))
    results = judge_all(pairs, limits=LIMITS, workers=2, execute=True)
    assert [(r.panel, r.problem_id, r.sample_index, r.outcome) for r in results] == [
        ("heldout", "double", 0, "failed"),
        ("heldout", "double", 1, "passed"),
        ("heldout", "double", 2, "no_code"),
        ("heldout", "double", 3, "failed"),
        ("ood", "sum", 9, "passed"),
    ]
    assert results[0].behaviour == results[3].behaviour != results[1].behaviour
    assert results[2] == Result("heldout", "double", 2, "no_code", None)


def test_without_execution_only_exact_answers_are_judged() -> None:
    assert verdict(DOUBLE, RIGHT, execute=False) == ("not_run", None)
    assert verdict(COUNT, "wc -l < notes.txt", execute=False) == ("not_run", None)
    assert verdict(DOUBLE, None, execute=False) == ("no_code", None)
    assert verdict(exact("7"), "7", execute=False)[0] == "passed"


def test_running_asks_only_whether_the_calls_return() -> None:
    numbers = function("double", probes=("double(2)", "double(0)"))
    codes = {
        0: RIGHT,
        1: "def double(x):\n    return 'wrong but runs'\n",
        2: "def double(x):\n    return 1 / x\n",
        3: "def double(x:\n",
        4: "def other(x):\n    return x\n",
    }
    rows = [sample(fenced(code), prompt_id="double", sample_index=i) for i, code in codes.items()]
    rows.append(sample("no code", prompt_id="double", sample_index=5))
    rows.append(sample(fenced(RIGHT), prompt_id="words", sample_index=0))
    words = Problem(panel="train", id="words", kind="text", prompt="Say it.")
    ran = running(rows, {"double": numbers, "words": words}, limits=LIMITS, workers=2)
    assert ran == {("double", 0), ("double", 1)}
