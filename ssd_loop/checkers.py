"""From the tests column of a data set to the means to judge an answer.

Tests are plain data or text that is parsed here and run in the sandbox, never anything that is loaded:
LiveCodeBench packs its private tests as a pickle, whose one text is read out of it.

All functions raise ValueError where a row cannot be used, with what is wrong with it as a predicate.
"""

from __future__ import annotations

import ast
import base64
import builtins
import json
import pickletools
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, NamedTuple

from ssd_loop.judging import last_number
from ssd_loop.problems import Case, Problem, preamble_of
from ssd_loop.programs import parse

# What a pickled text consists of; every other operation could name or call something.
PICKLED_TEXT = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
HARMLESS = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP"}
UNPACKED_BYTES = 1 << 30

# An assertion that runs where it stands leaves nothing to check.
NOTHING_LEFT = "\n\ndef check(candidate):\n    pass\n"

# Competition sites offer this to a function, whose signature uses it, as LiveCodeBench's judge does.
FUNCTION_PREAMBLE = """\
import bisect, collections, functools, heapq, itertools, math, operator, random, re, string, sys
from typing import *
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from operator import *
from builtins import *
sys.setrecursionlimit(50_000)
"""

SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Pair(NamedTuple):
    """An input and what must come of it; `called`: arguments and result of a function, not text."""

    given: Any
    expected: Any
    called: bool


def with_python_tests(problem: Problem, tests: Sequence[Any]) -> Problem:
    """A problem judged by test source: a ``check(candidate)``, as HumanEval has, or assertions, as MBPP.

    Without an entry point, assertions test the first function they call that is not their own.
    """
    source = "\n".join(text for value in tests for text in texts(value))
    tree = parse(source)
    if tree is None:
        raise ValueError("has tests that are not Python")
    has_check = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)
    if not has_check and not _asserts(tree.body):
        raise ValueError("has tests that neither define check(candidate) nor assert anything")
    entry_point = problem.entry_point or ("" if has_check else _first_called(tree))
    if not entry_point.isidentifier():
        raise ValueError("does not say which function its tests call; set columns.entry_point")
    return replace(
        problem,
        kind="check",
        entry_point=entry_point,
        preamble=preamble(problem.starter_code or problem.prompt, entry_point) or "",
        check=source if has_check else source + NOTHING_LEFT,
    )


def with_pairs(problem: Problem, tests: Sequence[Any]) -> Problem | None:
    """A problem judged by inputs and outputs: of a program, or of a function where the tests say so.

    None where there is not one pair.

    Args:
        problem: Its entry point names the function, where its tests do not.
        tests: Each a list of ``{"input", "output"}``, perhaps with ``"testtype": "functional"``
            (LiveCodeBench); or ``{"inputs": [...], "outputs": [...]}``, perhaps with ``"fn_name"`` (APPS,
            TACO); or together two lists, of inputs and of outputs (rStar-Coder). Any may be JSON text.
    """
    decoded = [_decoded(value) for value in tests]
    if len(decoded) == 2 and all(_is_plain_list(value) for value in decoded):
        decoded = [{"inputs": decoded[0], "outputs": decoded[1]}]
    pairs = [pair for value in decoded for pair in _pairs(value)]
    if not pairs:
        return None
    if len({pair.called for pair in pairs}) > 1:
        raise ValueError("has tests of a program and of a function; they must be of one kind")
    if not pairs[0].called:
        cases = tuple(Case({}, _text(pair.expected), _text(pair.given)) for pair in pairs)
        return replace(problem, kind="stdin", cases=cases)
    named = [str(value["fn_name"]) for value in decoded if isinstance(value, dict) and value.get("fn_name")]
    return _with_calls(problem, problem.entry_point or next(iter(named), ""), pairs)


def with_answer(problem: Problem, tests: Sequence[Any]) -> Problem:
    """A problem judged by one number: the last one of a text, as in GSM8K, or the number itself."""
    text = tests[0]
    if isinstance(text, int | float | Decimal) and not isinstance(text, bool):
        text = format(Decimal(str(text)), "f")
    number = last_number(text) if isinstance(text, str) and len(tests) == 1 else None
    if number is None:
        raise ValueError("has no answer that is a number or text with a number")
    return replace(problem, kind="exact", answer=number.replace(",", ""))


def texts(value: Any) -> list[str]:
    """The texts in a column: one, or a list of them, or such a list as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            listed = json.loads(value)
        except (ValueError, RecursionError):
            return [value]
        if listed and all(isinstance(item, str) for item in listed):
            return list(listed)
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise ValueError(f"holds a {type(value).__name__} where text is expected")


def preamble(code: str, entry_point: str) -> str | None:
    """What stands before the entry point in this code; None if it is no code or defines no such thing."""
    if not entry_point or entry_point not in code:
        return None
    try:
        return preamble_of(code, entry_point)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def unpacked(packed: str) -> str:
    """The text that was pickled, compressed and written as base64. Nothing is loaded: its bytes are read."""
    try:
        inflater = zlib.decompressobj()
        pickled = inflater.decompress(base64.b64decode(packed, validate=True), UNPACKED_BYTES)
        whole = inflater.eof
    except (ValueError, zlib.error):
        raise ValueError("has tests that are neither JSON nor packed as LiveCodeBench packs them") from None
    if not whole:
        raise ValueError(f"has packed tests that are cut off, or more than {UNPACKED_BYTES >> 20} MiB")
    found: list[str | None] = []
    try:
        for operation, argument, _ in pickletools.genops(pickled):
            if operation.name in PICKLED_TEXT:
                found.append(argument)
            elif operation.name not in HARMLESS:
                found.append(None)
                break
    except ValueError:  # not a pickle, or cut off
        found.clear()
    if len(found) != 1 or found[0] is None:
        raise ValueError("has tests in a pickle that is more than one text, which is never loaded")
    return found[0]


def _asserts(nodes: Iterable[ast.AST]) -> bool:
    """Whether an assertion stands outside functions and classes, where it runs."""
    return any(
        isinstance(node, ast.Assert)
        or (not isinstance(node, SCOPES) and _asserts(ast.iter_child_nodes(node)))
        for node in nodes
    )


def _first_called(tree: ast.Module) -> str:
    """The first function that is called and is neither built in nor made or imported by the tests."""
    own = set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, SCOPES):
            own.add(node.name)
        elif isinstance(node, ast.alias):
            own.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
    called = (
        node.func.id
        for statement in tree.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    )
    return next((name for name in called if name not in own), "")


def _decoded(value: Any) -> Any:
    """Plain data: as it is, written as JSON, or packed."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        text = unpacked(value)
    return _json(text)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"has tests that hold {text[:40]!r}, which is not JSON") from None


def _is_plain_list(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(item, dict) for item in value)


def _pairs(value: Any) -> list[Pair]:
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return [pair for item in value for pair in _pairs(item)]
    if isinstance(value, dict):
        for given, expected in (("inputs", "outputs"), ("input", "output")):
            if given in value and expected in value:
                return _paired(value, value[given], value[expected])
    raise ValueError("has tests that are neither pairs of input and output nor lists of both")


def _paired(value: dict[str, Any], given: Any, expected: Any) -> list[Pair]:
    if value.get("testtype") == "functional":
        lines = [line for line in _text(given).split("\n") if line.strip()]
        return [Pair([_json(line) for line in lines], _json(_text(expected)), called=True)]
    if not isinstance(given, list):
        return [Pair(given, expected, called=False)]
    if not isinstance(expected, list) or len(given) != len(expected):
        raise ValueError("has tests with more inputs than outputs, or fewer")
    called = bool(value.get("fn_name"))
    if called and all(isinstance(item, list) and len(item) == 1 for item in expected):
        expected = [item[0] for item in expected]  # APPS and TACO put each result in a list
    return [Pair(*pair, called=called) for pair in zip(given, expected, strict=True)]


def _text(value: Any) -> str:
    """Input or output of a program; some data sets give its lines."""
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError(f"has tests with a {type(value).__name__} as input or output of a program")


def _with_calls(problem: Problem, name: str, pairs: Sequence[Pair]) -> Problem:
    if not name.isidentifier():
        raise ValueError("does not say which function its tests call; set columns.entry_point")
    before = preamble(problem.starter_code, "Solution")
    is_method = before is not None
    callee = f"Solution().{name}" if is_method else name
    return replace(
        problem,
        kind="function",
        entry_point="Solution" if is_method else name,
        preamble=FUNCTION_PREAMBLE + (before or preamble(problem.starter_code, name) or ""),
        tests=tuple((f"{callee}({_arguments(pair.given)})", _source(pair.expected)) for pair in pairs),
    )


def _arguments(given: Any) -> str:
    if not isinstance(given, list):
        raise ValueError("has tests of a function whose input is not a list of arguments")
    return ", ".join(map(_source, given))


def _source(value: Any) -> str:
    """Plain data as Python source."""
    source = repr(value)
    if "inf" in source or "nan" in source:  # in a text, or a number that has no source
        try:
            ast.literal_eval(source)
        except ValueError:
            raise ValueError("has tests with a number that is not finite") from None
    return source
