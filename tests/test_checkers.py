"""Tests columns of well-known shapes become checks; what is loaded by others is only read here."""

from __future__ import annotations

import base64
import json
import pickle
import pickletools
import zlib
from typing import Any

import pytest

from ssd_loop.checkers import preamble, texts, unpacked, with_answer, with_pairs, with_python_tests
from ssd_loop.problems import Case, Problem


def task(**other: Any) -> Problem:
    return Problem(panel="heldout", id="t", kind="text", prompt="Do it.", **other)


def packed(data: object, protocol: int = 4) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(data, protocol))).decode()


class Malicious:
    """Runs a program when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("loaded",)


def test_assertions_test_the_first_function_that_is_not_their_own() -> None:
    lines = [
        "from math import isclose",
        "assert isclose(sorted([half(3)])[0], 1.5)",
        "assert half(other(2)) == 1",
    ]
    found = with_python_tests(task(), [lines])
    assert (found.kind, found.entry_point, found.preamble) == ("check", "half", "")
    assert with_python_tests(task(), [json.dumps(lines)]) == found
    assert with_python_tests(task(), lines) == found
    assert with_python_tests(task(entry_point="other"), [lines]).entry_point == "other"


def test_a_check_of_a_candidate_stays_as_it_is() -> None:
    source = "def check(candidate):\n    assert candidate(1) == 2\n"
    code = "import math\n\ndef up(x):\n    '''Go up.'''\n"
    found = with_python_tests(task(entry_point="up", starter_code=code), [source])
    assert (found.check, found.preamble) == (source, "import math\n\n")


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ("assert f(", "not Python"),
        ("print(f(1))", "nor assert anything"),
        ("def test_it():\n    assert f(1) == 2", "nor assert anything"),
        ("assert sum([1]) == 1", "which function its tests call"),
        ("def check(candidate):\n    assert candidate(1)", "which function its tests call"),
        (5, "holds a int where text is expected"),
        ([1, 2], "holds a list where text is expected"),
    ],
)
def test_tests_that_test_nothing_are_refused(tests: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        with_python_tests(task(), [tests])


PAIRS = [{"input": "1\n", "output": "2", "testtype": "stdin"}, {"input": "3", "output": "4\n"}]
CASES = (Case({}, "2", "1\n"), Case({}, "4\n", "3"))


@pytest.mark.parametrize(
    "tests",
    [
        [PAIRS],
        [json.dumps(PAIRS)],
        [packed(json.dumps(PAIRS))],
        [packed(json.dumps(PAIRS), protocol=2)],
        [PAIRS[:1], json.dumps(PAIRS[1:])],
        PAIRS,
        [{"inputs": ["1\n", "3"], "outputs": ["2", "4\n"]}],
        [json.dumps({"input": ["1\n", "3"], "output": ["2", "4\n"]})],
        [{"inputs": ["1\n", "3"], "outputs": ["2", ["4", ""]], "fn_name": None}],
        [["1\n", "3"], ["2", "4\n"]],
        [json.dumps(["1\n", 3]), json.dumps([2, "4\n"])],
    ],
)
def test_inputs_and_outputs_of_a_program_come_in_many_shapes(tests: list[Any]) -> None:
    found = with_pairs(task(), tests)
    assert found is not None
    assert (found.kind, found.cases, found.tests) == ("stdin", CASES, ())


@pytest.mark.parametrize("tests", [["[]"], [[], []], [{"inputs": [], "outputs": []}]])
def test_no_pair_is_no_problem(tests: list[Any]) -> None:
    assert with_pairs(task(), tests) is None


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        (["[1, 2"], "neither JSON nor packed"),
        (["AAAA"], "neither JSON nor packed"),
        ([[1, 2]], "neither pairs of input and output"),
        ([{"in": "1"}], "neither pairs of input and output"),
        ([{"inputs": ["1"], "outputs": []}], "more inputs than outputs"),
        ([["1", "2"], ["1"]], "more inputs than outputs"),
        ([[{"input": "1", "output": None}]], "a NoneType as input or output"),
        ([[PAIRS[0], {"input": "1", "output": "2", "testtype": "functional"}]], "program and of a function"),
    ],
)  # fmt: skip
def test_pairs_that_cannot_be_used_are_refused(tests: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        with_pairs(task(entry_point="f"), tests)


STARTER = "class Solution:\n    def add(self, a: List[int], b: str) -> bool:\n        "
CALLS = [
    {"input": '[1, 2]\n"x, \\"y\\""', "output": "true", "testtype": "functional"},
    {"input": '[]\n\n"\u2028"\n', "output": "null", "testtype": "functional"},
]


def test_calls_of_a_method_become_source() -> None:
    found = with_pairs(task(entry_point="add", starter_code="import re\n" + STARTER), [CALLS])
    assert found is not None
    assert (found.kind, found.entry_point) == ("function", "Solution")
    assert found.tests == (
        ("Solution().add([1, 2], 'x, \"y\"')", "True"),
        ("Solution().add([], '\\u2028')", "None"),
    )
    assert "from typing import *" in found.preamble
    assert found.preamble.endswith("import re\n")


@pytest.mark.parametrize(
    ("tests", "call"),
    [
        ({"inputs": [[1, [2]]], "outputs": [[3]], "fn_name": "add"}, ("add(1, [2])", "3")),
        ({"inputs": [[1, [2]]], "outputs": [[3, 4]], "fn_name": "add"}, ("add(1, [2])", "[3, 4]")),
        ({"inputs": [["a"]], "outputs": ["b"], "fn_name": "add"}, ("add('a')", "'b'")),
    ],
)
def test_calls_of_a_function_name_it_themselves(tests: dict[str, Any], call: tuple[str, str]) -> None:
    found = with_pairs(task(), [json.dumps(tests)])
    assert found is not None
    assert (found.entry_point, found.tests) == ("add", (call,))


@pytest.mark.parametrize(
    ("name", "tests", "said"),
    [
        ("", CALLS, "which function its tests call"),
        ("a(); b", CALLS, "which function its tests call"),
        ("f", [{**CALLS[0], "input": "[1"}], "'\\[1', which is not JSON"),
        ("f", [{**CALLS[0], "output": "1e999"}], "not finite"),
        ("f", {"inputs": ["1"], "outputs": ["2"], "fn_name": "f"}, "not a list of arguments"),
    ],
)
def test_calls_that_cannot_be_made_are_refused(name: str, tests: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        with_pairs(task(entry_point=name), [tests])


def test_words_that_look_infinite_are_only_words() -> None:
    tests = {"inputs": [["information", "nan"]], "outputs": ["inf"], "fn_name": "f"}
    found = with_pairs(task(), [tests])
    assert found is not None
    assert found.tests == (("f('information', 'nan')", "'inf'"),)


@pytest.mark.parametrize("text", ["", "[]", "é" * 300, "x" * 70_000])
@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_a_packed_text_is_read_as_pickle_would(text: str, protocol: int) -> None:
    assert unpacked(packed(text, protocol)) == text


@pytest.mark.parametrize(
    "data", [Malicious(), ["a"], ("a", "b"), {"a": "b"}, 5, b"a", None, ["[]", Malicious()]]
)
def test_a_pickle_that_is_more_than_a_text_is_never_loaded(
    data: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="more than one text, which is never loaded"):
        unpacked(packed(data))
    assert capsys.readouterr().out == ""


def test_a_text_with_more_behind_it_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    text, more = pickle.dumps("[]", 2), pickle.dumps(Malicious(), 2)
    operations = text[:-1] + more[2:]  # one pickle: the text, then the call
    assert "REDUCE" in [operation.name for operation, _, _ in pickletools.genops(operations)]
    with pytest.raises(ValueError, match="never loaded"):
        unpacked(base64.b64encode(zlib.compress(operations)).decode())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("cut", [5, 40, -1])
def test_a_cut_text_is_refused(cut: int) -> None:
    whole = base64.b64decode(packed("a text that is long enough to be cut somewhere"))
    with pytest.raises(ValueError, match=r"cut off|neither JSON"):
        unpacked(base64.b64encode(whole[:cut]).decode())
    pickled = pickle.dumps("a text", 4)
    with pytest.raises(ValueError, match="never loaded"):
        unpacked(base64.b64encode(zlib.compress(pickled[:-3])).decode())


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ("7", "7"),
        (7, "7"),
        (2.50, "2.5"),
        (1e-05, "0.00001"),
        ("She sold 1 + 2.\n#### 1,234", "1234"),
        ("#### -3", "-3"),
    ],
)
def test_an_exact_answer_is_the_last_number(value: Any, answer: str) -> None:
    found = with_answer(task(), [value])
    assert (found.kind, found.answer) == ("exact", answer)


@pytest.mark.parametrize("tests", [["none"], [True], [["7"]], [float("nan")], ["7", "8"]])
def test_an_answer_without_a_number_is_refused(tests: list[Any]) -> None:
    with pytest.raises(ValueError, match="has no answer"):
        with_answer(task(), tests)


def test_one_text_and_lists_of_texts() -> None:
    assert texts("[not json") == ["[not json"]
    assert texts("[]") == ["[]"]
    assert texts('["a", "b"]') == texts(["a", "b"]) == ["a", "b"]
    assert texts("[1]") == ["[1]"]


@pytest.mark.parametrize(
    ("code", "name", "before"),
    [
        ("import re\ndef f(x):\n", "f", "import re\n"),
        ("def g():\n    return 1\ndef f(x):\n    ''", "f", "def g():\n    return 1\n"),
        (STARTER, "Solution", ""),
        (STARTER, "add", None),
        ("Define f.", "f", None),
        ("", "f", None),
        ("def f(): ...", "", None),
    ],
)
def test_what_stands_before_an_entry_point(code: str, name: str, before: str | None) -> None:
    assert preamble(code, name) == before
