"""Answers and their outcomes, in the real sandbox."""

from __future__ import annotations

import pytest

from ssd_loop.judging import answer_of, judge, judge_all, running, same_output
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


ADD = Problem(
    panel="heldout",
    id="add",
    kind="stdin",
    prompt="Add the numbers.",
    cases=(Case({}, "3\n", "1 2\n"), Case({}, "", ""), Case({}, "5.0 \n", "5\n")),
)
CALLS = function("up", tests=(("up([1])", "[2]"), ("up([])", "[]"), ("up([0, 0])", "[1, 1]")))


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


SUMS = "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))\n"


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (SUMS, "passed"),
        (SUMS + "sys.exit(0)\n", "passed"),
        (SUMS + "import os\nsys.stdout.flush()\nos._exit(0)\n", "passed"),
        (SUMS + "sys.exit(1)\n", "failed"),
        ("import sys\nprint(sum(map(int, sys.stdin.read().split())))\n", "failed"),
        ("print(sum(map(int, input().split())))\n", "failed"),
        ("", "failed"),
        ("print(3", "failed"),
        (SUMS + "import os\nsys.stdout.flush()\nos.kill(os.getpid(), 9)\n", "crashed"),
        (SUMS + "sys.stdout.flush()\nwhile True: pass\n", "timeout"),
    ],
)
def test_a_program_prints_what_every_case_expects(code: str, outcome: str) -> None:
    assert verdict(ADD, code)[0] == outcome


def test_a_program_behaves_by_what_it_prints_up_to_its_first_mistake() -> None:
    padded, largest, smallest = (
        SUMS.replace("print(sum(", new) for new in ("print('', sum(", "print(max(", "print(min(")
    )
    codes = (SUMS, padded, largest, "print(2)\n", smallest)
    behaviours = [verdict(ADD, code)[1] for code in codes]
    assert None not in behaviours
    assert behaviours[0] == behaviours[1] != behaviours[2]
    assert behaviours[2] == behaviours[3] != behaviours[4]
    assert verdict(ADD, "while True: pass")[1] is None


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("1 2\n3\n", "1 2\n3", True),
        ("1 2  \n3\n\n\n", "1 2\n3", True),
        ("1 2\r\n3", "1 2\n3", True),
        ("0.50", "0.5", True),
        ("1e3 -0", "1000 0.0", True),
        ("YES", "YES\n", True),
        ("", "\n", True),
        ("1 2 3", "1 2\n3", False),
        ("1\n\n2", "1\n2", False),
        ("0.5000001", "0.5", False),
        ("yes", "YES", False),
        ("1", "", False),
        ("sNaN", "1", False),
        ("NaN", "nan", False),
        ("1 2", "1 2 3", False),
    ],
)
def test_which_outputs_agree(printed: str, expected: str, same: bool) -> None:
    assert same_output(printed, expected) is same
    assert same_output(expected, printed) is same


def test_a_program_may_print_as_much_as_is_expected() -> None:
    lines = "".join(f"{number:09}\n" for number in range(60_000))  # 600 KB
    problem = Problem(panel="heldout", id="p", kind="stdin", prompt="", cases=(Case({}, lines, "60000"),))
    program = "print(''.join('%09d\\n' % i for i in range(int(input()))))"
    assert verdict(problem, program)[0] == "passed"
    assert verdict(problem, "while True: print('1' * 1000)")[0] == "crashed"


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("def up(x):\n    return [n + 1 for n in x]\n", "passed"),
        ("def up(x):\n    return tuple(n + 1 for n in x)\n", "passed"),
        ("def up(x):\n    return [n + 1 for n in x] or None\n", "failed"),
        ("def up(x):\n    return {n + 1 for n in x}\n", "failed"),
        ("def up(x):\n    return [n + 1 for n in x] if x else 1 / 0\n", "failed"),
        ("def up(x):\n    while not x: pass\n    return [2]\n", "timeout"),
        ("def down(x):\n    return x\n", "crashed"),
    ],
)
def test_a_function_without_probes_is_judged_test_by_test(code: str, outcome: str) -> None:
    assert verdict(CALLS, code)[0] == outcome


def test_each_test_of_a_function_without_probes_has_the_limits_to_itself() -> None:
    slow = "import time\ndef up(x):\n    end = time.process_time() + 0.5\n"
    slow += "    while time.process_time() < end: pass\n    return [n + 1 for n in x]\n"
    outcome, behaviour = verdict(CALLS, slow)
    assert outcome == "passed"
    assert behaviour not in (None, verdict(CALLS, "def up(x):\n    return x\n")[1])


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


def test_a_program_runs_if_it_ends_on_the_sample_input() -> None:
    codes = [
        "print(int(input().split()[1]))",
        "import sys\nsys.exit(0)",
        "print(1 / 0)",
        "import sys\nsys.exit(1)",
    ]
    rows = [sample(fenced(code), prompt_id="add", sample_index=i) for i, code in enumerate(codes)]
    ran = running(rows, {"add": ADD}, limits=LIMITS, workers=2)
    assert ran == {("add", 0), ("add", 1)}


def test_without_probes_a_test_is_called_and_without_tests_the_answer_is_loaded() -> None:
    loads = ["def root(x):\n    return 1 / 0\n", "def other(x):\n    return 1\n", "def root(x):\n"]
    calls = ["def up(x):\n    return x[0]\n", "def up(x):\n    return x[1]\n"]
    rows = [sample(fenced(code), prompt_id="check", sample_index=i) for i, code in enumerate(loads)]
    rows += [sample(fenced(code), prompt_id="up", sample_index=i) for i, code in enumerate(calls)]
    ran = running(rows, {"check": CHECK, "up": CALLS}, limits=LIMITS, workers=2)
    assert ran == {("check", 0), ("up", 0)}
