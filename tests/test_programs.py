"""Code in answers: where it is, whether it does anything, and which programs are the same."""

from __future__ import annotations

import re

import pytest

from ssd_loop.programs import canonical_hash, extract_code, is_stub, parse

ADD = "def add(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"Sure:\n```python\n{ADD}```\nDone.", ADD),
        (f"```\n{ADD}```", ADD),
        (f"```py\n{ADD}```\n\n", ADD),
        (f"~~ \n  ```python\n{ADD}  ```\n", ADD),
        (f"First\n```python\nx = 1\n```\nbetter:\n```python\n{ADD}```", ADD),
        (f"```python\n{ADD}```\nprints\n```text\n3\n```", "3\n"),
        (f"```python\n{ADD}", ADD),
        (f"```python\nx = 1\n```\nbetter:\n```python\n{ADD}", ADD),
        ("```python\n", ""),
        ("```python\n```", ""),
        (f"<think>\n```python\nx = 1\n```\n</think>\n```python\n{ADD}```", ADD),
        (f"```python\nx = 1\n```\n</think>\n```python\n{ADD}```", ADD),
        ("```python\nfirst = '''\n```sh\nls\n'''\n```", "first = '''\n```sh\nls\n'''\n"),
        ("```python\nprint('```')\n```", "print('```')\n"),
        ("```python title=x.py\nx = 1\n```", "x = 1\n"),
        ("```\tpython\nx = 1\n```", "x = 1\n"),
    ],
)
def test_the_last_block_after_thinking_is_the_code(text: str, code: str) -> None:
    assert extract_code(text) == code


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no code here",
        "use `x = 1` inline",
        "```x = 1```",
        ADD,
        "<think>\n```python\nx = 1\n```\n</think>\nI cannot do that.",
    ],
)
def test_no_block_is_no_code(text: str) -> None:
    assert extract_code(text) is None


def test_a_thinking_part_that_was_cut_has_no_answer_yet() -> None:
    assert extract_code("<think>\nMaybe:\n```python\nx = 1\n```\nbut wait") is None


ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
NEXT_MESSAGE = "<|end|><|start|>assistant"
WRONG = "```python\nx = 1\n```\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"{ANALYSIS}Maybe:\n{WRONG}{NEXT_MESSAGE}{FINAL}```python\n{ADD}```", ADD),
        (f"{FINAL}```python\n{ADD}```", ADD),
        (f"{FINAL}```python\n{ADD}", ADD),
        (f"{FINAL}{WRONG}{NEXT_MESSAGE}{FINAL}```python\n{ADD}```", ADD),
        (f"{FINAL}```python\n{ADD}```{NEXT_MESSAGE}{ANALYSIS}More:\n{WRONG}", ADD),
        (f"{ANALYSIS}Maybe:\n{WRONG}", None),
        (f"{ANALYSIS}Maybe:\n{WRONG}{NEXT_MESSAGE}", None),
        (f"{ANALYSIS}Maybe:\n{WRONG}{NEXT_MESSAGE}<|channel|>commentary<|message|>{WRONG}", None),
        (f"{ANALYSIS}Maybe:\n{WRONG}{NEXT_MESSAGE}{FINAL}I cannot do that.", None),
    ],
)
def test_gpt_oss_answers_in_the_final_channel_alone(text: str, code: str | None) -> None:
    assert extract_code(text) == code


def test_windows_line_ends_close_a_block_too() -> None:
    text = "First\r\n```python\r\nx = 1\r\n```\r\nthen\r\n```python\r\ny = 2\r\n```\r\nDone.\r\n"
    code = extract_code(text)
    assert code is not None
    assert code.splitlines() == ["y = 2"]


def test_many_fences_take_no_time() -> None:
    assert extract_code("```python\nx = 1\n" * 20_000) is not None
    assert extract_code("```python\nx = 1\n```\n" * 20_000) == "x = 1\n"


@pytest.mark.parametrize("code", ["def f(:", "x = (", "\x00", "x = 1\n  y", "(" * 5000, "-" * 100_000 + "1"])
def test_what_does_not_parse_has_no_tree_and_no_hash(code: str) -> None:
    assert parse(code) is None
    assert canonical_hash(code) is None


def test_parsing_does_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    assert parse("x = '\\d'\nassert (1, 'always')\n") is not None
    assert not recwarn.list


@pytest.mark.parametrize(
    "code",
    [
        "",
        "\n\n",
        "# todo\n",
        "x = 1",
        "def f(x): return x + 1",
        "# one\n# two\nprint(1)\n",
        "def f(x):\n    pass\n",
        "def f(x):\n    ...\n",
        'def f(x):\n    """Doc."""\n',
        'def f(x):\n    """Doc."""\n    raise NotImplementedError\n',
        "def f(x):\n    raise NotImplementedError('later')\n",
        "import math\n\ndef f(x):\n    pass\n",
        "class A:\n    def f(self):\n        pass\n",
        "async def f():\n    ...\n",
    ],
)
def test_what_does_nothing_is_a_stub(code: str) -> None:
    assert is_stub(code)


@pytest.mark.parametrize(
    "code",
    [
        ADD,
        "x = 1\ny = 2\n",
        'def f(x):\n    """Doc."""\n    return x\n',
        "def f(x):\n    raise ValueError(x)\n",
        "def f(x):\n    pass\n\ndef g(x):\n    return x\n",
        "def f(x):\n    if x:\n        pass\n",
        "def f(:\n    not python\n",
    ],
)
def test_what_does_something_is_no_stub(code: str) -> None:
    assert not is_stub(code)


LONG = """\
import re as regex

def words(text: str, at_least: int = 2) -> list[str]:
    \"\"\"Words of a text.\"\"\"
    found: list[str] = []
    for word in regex.split(r"\\s+", text):  # any space
        try:
            if len(word) >= at_least:
                found.append(word)
        except ValueError as problem:
            raise RuntimeError(problem)
    return sorted(found, key=lambda item: item.lower())
"""


@pytest.mark.parametrize("name", ["words", "word", "text", "found", "item", "problem", "regex", "at_least"])
def test_a_renamed_variable_makes_no_new_program(name: str) -> None:
    changed = re.sub(rf"\b{name}\b", f"other_{name}", LONG)
    assert changed != LONG
    assert canonical_hash(changed) == canonical_hash(LONG)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # any space", ""),
        ('    """Words of a text."""\n', ""),
        ("Words of", "All words of"),
        (": list[str] = []", " = []"),
        ("text: str, at_least: int = 2", "text, at_least=2"),
        (" -> list[str]", ""),
        ("\n\n", "\n\n\n\n# a comment\n"),
        ("(found, key", "(\n        found,\n        key"),
        ('r"\\s+"', "'\\\\s+'"),
    ],
)
def test_layout_and_notes_make_no_new_program(old: str, new: str) -> None:
    changed = LONG.replace(old, new)
    assert changed != LONG
    assert canonical_hash(changed) == canonical_hash(LONG)


def test_a_renamed_global_makes_no_new_program() -> None:
    code = "count = 0\ndef tick():\n    global count\n    count += 1\n"
    assert canonical_hash(code) == canonical_hash(code.replace("count", "total"))


def test_a_renamed_keyword_of_a_local_function_makes_no_new_program() -> None:
    code = "def scale(x, by):\n    return x * by\ny = scale(2, by=3)\n"
    assert canonical_hash(code) == canonical_hash(code.replace("by", "factor"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(xs):\n    return max(xs)\n", "def f(xs):\n    return min(xs)\n"),
        ("def f(xs):\n    return sorted(xs)\n", "def f(xs):\n    return list(xs)\n"),
        ("def f(a, b):\n    return a - b\n", "def f(a, b):\n    return b - a\n"),
        ("def f(a, b):\n    return a - b\n", "def f(a, b):\n    return a + b\n"),
        ("def f(a):\n    return a.upper()\n", "def f(a):\n    return a.lower()\n"),
        ("def f(a):\n    return 1\n", "def f(a):\n    return 2\n"),
        ("def f(a):\n    return 1\n", "def f(a):\n    return True\n"),
        ("def f(a):\n    return 'x'\n", "def f(a):\n    return b'x'\n"),
        ("def f(a):\n    return a\n", "def f(a):\n    yield a\n"),
        ("def f(a, b=1):\n    return a\n", "def f(a, b):\n    return a\n"),
        ("def f(xs):\n    return sorted(xs, reverse=1)\n", "def f(xs):\n    return sorted(xs, key=1)\n"),
        ("from math import floor\nfloor(1.5)\n", "from math import ceil\nceil(1.5)\n"),
        ("def f(x):\n    try:\n        g(x)\n    except ValueError:\n        pass\n",
         "def f(x):\n    try:\n        g(x)\n    except TypeError:\n        pass\n"),
        ("def f(a):\n    return a\n", "async def f(a):\n    return a\n"),
        ("def f(a):\n    b = a\n    return b\n", "def f(a):\n    b = a\n    return a\n"),
    ],
)  # fmt: skip
def test_different_programs_are_told_apart(one: str, other: str) -> None:
    assert canonical_hash(one) is not None
    assert canonical_hash(one) != canonical_hash(other)


def test_a_docstring_is_dropped_but_a_returned_text_is_not() -> None:
    one, other = "def f():\n    return 'a'\n", "def f():\n    return 'b'\n"
    assert canonical_hash(one) != canonical_hash(other)


def test_the_hash_never_moves_between_calls() -> None:
    assert canonical_hash(LONG) == canonical_hash(LONG)
    assert len(canonical_hash(LONG) or "") == 64


def test_a_number_too_long_to_print_has_no_hash_and_no_traceback() -> None:
    assert canonical_hash("x = 0x" + "f" * 4000 + "\ny = 1\n") is None
