"""What came back from a sandboxed call: stable text to hash, comparison with what was expected."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

REL_TOLERANCE = 1e-6
ABS_TOLERANCE = 1e-9
NUMBERS = (bool, int, float)


@dataclass(frozen=True)
class Returned:
    """A call that returned plain data (which may hold `Foreign` parts)."""

    value: Any


@dataclass(frozen=True)
class Raised:
    """A call that raised; `SystemExit` counts."""

    class_name: str


@dataclass(frozen=True)
class Foreign:
    """A call that returned something else than plain data, or such a part of a value."""

    class_name: str


@dataclass(frozen=True)
class Missing:
    """A call that was never answered, because the program ended or was stopped before."""


Return = Returned | Raised | Foreign | Missing


def canonical(returns: Sequence[Return]) -> str:
    """Returns stable ASCII text of what the calls gave: equal behaviour, equal text.

    Every value carries its type, floats are rounded to 12 significant digits, sets are sorted by
    their own text, dicts keep insertion order.
    """
    return "\n".join(_line(item) for item in returns)


def same(value: object, expected: object) -> bool:
    """Whether two pieces of plain data agree: same types all through, but numbers mix as in Python.

    Floats agree within 1e-6 of the larger one, or within 1e-9.
    """
    if type(value) in NUMBERS and type(expected) in NUMBERS:
        return _same_number(value, expected)
    if type(value) is not type(expected):
        return False
    if isinstance(value, complex) and isinstance(expected, complex):
        return _same_number(value.real, expected.real) and _same_number(value.imag, expected.imag)
    if isinstance(value, list | tuple) and isinstance(expected, list | tuple):
        return len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        return len(value) == len(expected) and all(
            key in value and same(value[key], item) for key, item in expected.items()
        )
    if isinstance(value, set | frozenset) and isinstance(expected, set | frozenset):
        return value == expected or _same_elements(value, expected)
    return isinstance(value, str | bytes | None) and value == expected


def _line(item: Return) -> str:
    if isinstance(item, Returned):
        return f"returned {_tagged(item.value)}"
    if isinstance(item, Missing):
        return "missing"
    return f"{type(item).__name__.lower()} {item.class_name!a}"


def _tagged(value: Any) -> str:
    if isinstance(value, Foreign):
        return f"foreign({value.class_name!a})"
    kind = type(value).__name__
    if isinstance(value, float):
        return f"float({value:.12g})"
    if isinstance(value, complex):
        return f"complex({value.real:.12g},{value.imag:.12g})"
    if type(value) is int:
        return f"int({value:x})"  # hexadecimal: decimal text of huge integers is refused by Python
    if isinstance(value, list | tuple):
        return f"{kind}({','.join(map(_tagged, value))})"
    if isinstance(value, set | frozenset):
        return f"{kind}({','.join(sorted(map(_tagged, value)))})"
    if isinstance(value, dict):
        return f"dict({','.join(f'{_tagged(k)}:{_tagged(v)}' for k, v in value.items())})"
    return f"{kind}({value!a})"


def _same_number(value: Any, expected: Any) -> bool:
    if value == expected or (value != value and expected != expected):
        return True
    if type(value) is not float and type(expected) is not float:
        return False
    try:
        return math.isclose(value, expected, rel_tol=REL_TOLERANCE, abs_tol=ABS_TOLERANCE)
    except OverflowError:  # an integer beyond every float
        return False


def _same_elements(value: Collection[object], expected: Collection[object]) -> bool:
    left = list(value)
    for wanted in expected:
        match = next((i for i, got in enumerate(left) if same(got, wanted)), None)
        if match is None:
            return False
        del left[match]
    return not left
