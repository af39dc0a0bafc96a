"""From the rows of a data set to tasks: columns mapped, rows chosen, equal ones dropped.

The same rows give the same problems, wherever they were read from.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from functools import cache
from itertools import chain
from typing import Any, Literal, get_args
from uuid import UUID

from ssd_loop import checkers, progress
from ssd_loop.config import ColumnName, DataConfig, Range, Scalar
from ssd_loop.errors import ConfigError
from ssd_loop.problems import Problem, Wording, thin
from ssd_loop.tables import DEFAULT_ID, Row, Table, columns_of, open_table, require_columns, root_of, shown

Dropped = Literal["filtered out", "repeated", "without tests"]
Condition = Scalar | tuple[Scalar, ...] | Range

ID_DIGITS = 16
EMPTY: tuple[Any, ...] = (None, "", [], {})


def load_tasks(config: DataConfig, panel: str, where: str) -> tuple[Problem, ...]:
    """The tasks of a source, in their order and read once per process.

    Of rows with the same text, white space apart, and the same starter code the first counts (arXiv
    2604.01193, section 3.1).

    Args:
        config: Names any source but the built-in problems.
        panel: Problem set that the tasks belong to.
        where: How messages name the section of `config`, such as ``prompts``.

    Raises:
        ConfigError: no such source, split or column, a row that cannot be used, or no row left.
        SsdLoopError: the Hub cannot be reached, or what it sends cannot be stored.
    """
    return _load(config.model_dump_json(), panel, where)


def select(problems: Sequence[Problem], limit: int | None, seed: int | None) -> tuple[Problem, ...]:
    """`limit` of the problems in their order: spread evenly, or with a seed at random; None keeps all."""
    if seed is None or limit is None or limit >= len(problems):
        return thin(problems, limit)
    kept = sorted(random.Random(seed).sample(range(len(problems)), limit))
    return tuple(problems[index] for index in kept)


@cache
def _load(settings: str, panel: str, where: str) -> tuple[Problem, ...]:
    config = DataConfig.model_validate_json(settings)
    problems = _problems(open_table(config, where), config, panel, where)
    chosen = select(problems, config.limit, config.seed)
    if len(chosen) < len(problems):
        progress.say(f"{where}: {len(chosen):,} of them used")
    return chosen


def _problems(table: Table, config: DataConfig, panel: str, where: str) -> list[Problem]:
    rows = iter(table.rows)
    first = next(rows, None)
    if first is None:
        raise ConfigError(f"{config.source} ({where}.source) holds no prompts")
    id_column = _id_column(config, first[1])
    counts: Counter[str] = Counter()
    met = dict.fromkeys(table.columns)
    keys: set[str] = set()
    problems: dict[str, Problem] = {}
    for place, row in chain([first], rows):
        _require_prompt(row, id_column, config, place, where)
        met.update(dict.fromkeys(row))
        try:
            outcome = _problem(row, config, panel, id_column, keys)
        except ValueError as error:
            raise ConfigError(f"{place} {error}; check {where} or mend the row") from None
        counts["read"] += 1
        if isinstance(outcome, str):
            counts[outcome] += 1
        elif outcome.id in problems:
            raise ConfigError(
                f"{place} repeats the id {outcome.id!r}; ids must differ: name another {where}.id_column"
            )
        else:
            problems[outcome.id] = outcome
    require_columns(met, config, where)
    _say(counts, len(problems), config, where)
    if not problems:
        raise ConfigError(_nothing_left(counts, first[1], config, where))
    return list(problems.values())


def _problem(
    row: Row, config: DataConfig, panel: str, id_column: str | None, keys: set[str]
) -> Problem | Dropped:
    """The problem in a row, or why it gives none; `keys` of the rows before grow by this one's.

    Raises:
        ValueError: what is wrong with the row, as a predicate.
    """
    if not all(matches(value_in(row, column), asked) for column, asked in config.where.items()):
        return "filtered out"
    prompt = value_in(row, config.prompt_column)
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("has an empty prompt")
    starter_code = _mapped(row, config, "starter_code")
    key = _key(prompt, starter_code)
    if key in keys:
        return "repeated"
    name = value_in(row, id_column) if id_column else key[:ID_DIGITS]
    if name in EMPTY:
        raise ValueError("has an empty id")
    if not isinstance(name, str | int | date | UUID) or isinstance(name, bool):
        raise ValueError(f"has a {type(name).__name__} as its id, which must be text or a whole number")
    _require_text(prompt=prompt, id=str(name))
    problem = Problem(
        panel=panel,
        id=str(name),
        kind="text",
        prompt=prompt,
        tier=_mapped(row, config, "tier") or "all",
        entry_point=_mapped(row, config, "entry_point"),
        solution=_mapped(row, config, "solution"),
        starter_code=starter_code,
    )
    judged = _judged(problem, row, config)
    if judged is None:
        return "without tests"
    keys.add(key)
    return replace(judged, template=wording(judged, config))


def _judged(problem: Problem, row: Row, config: DataConfig) -> Problem | None:
    """The problem with the means to judge an answer, None where the row has no tests."""
    if config.checker == "none":
        before = checkers.preamble(problem.prompt, problem.entry_point)
        return problem if before is None else replace(problem, kind="function", preamble=before)
    tests = [value_in(row, column) for column in columns_of(config, "tests")]
    tests = [value for value in tests if value not in EMPTY]
    if not tests:
        return None
    if config.checker == "python":
        return checkers.with_python_tests(problem, tests)
    if config.checker == "stdin":
        return checkers.with_pairs(problem, tests)
    return checkers.with_answer(problem, tests)


def wording(problem: Problem, config: DataConfig) -> Wording:
    """The template of a problem; "" where the wording is the one of its kind."""
    template = config.template
    if template == "auto":
        if problem.starter_code or problem.kind in ("function", "check"):
            template = "function"
        elif problem.kind == "stdin" or (problem.kind == "text" and "starter_code" in config.columns):
            template = "stdin"
        else:
            return ""
    if template == "function" and not problem.starter_code:
        # Text that is code itself, as in HumanEval, is shown as code.
        return "function" if checkers.preamble(problem.prompt, problem.entry_point) is None else ""
    return "" if template == "plain" and problem.kind == "text" else template


def value_in(row: Row, column: str) -> Any:
    """What a column holds; ``a.b`` is b of what column a holds, as a mapping or as JSON. None if missing.

    Raises:
        ValueError: column a holds text that is not JSON.
    """
    if column in row:
        return row[column]
    name, *path = column.split(".")
    value = row.get(name)
    for key in path:
        if isinstance(value, str) and value:
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise ValueError(f"has text in column {name!r} that is not JSON") from None
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _require_text(**texts: str) -> None:
    """JSON can escape half a character, which no tokenizer and no file takes."""
    for name, text in texts.items():
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"has half a character (a lone surrogate) in its {name}")


def matches(value: Any, condition: Condition) -> bool:
    """Whether a value is the one asked for, one of those, or within a range; None is not in any range.

    Text is compared with a bound by as many characters as the bound has, so "2025-05" as the last month
    includes its last day. Dates count as ISO text.

    Raises:
        ValueError: text where the range asks for numbers, or the other way round.
    """
    value = value.isoformat() if isinstance(value, date) else value
    if not isinstance(condition, Range):
        return value in (condition if isinstance(condition, tuple) else (condition,))
    low, high = condition.min, condition.max
    return value is not None and (
        (low is None or _cut(value, low) >= low) and (high is None or _cut(value, high) <= high)
    )


def _cut(value: Any, bound: Scalar) -> Any:
    if isinstance(value, str) and isinstance(bound, str):
        return value[: len(bound)]
    if isinstance(value, str | list | dict) or isinstance(bound, str):
        raise ValueError(f"holds {str(value)[:40]!r}, which cannot be compared with {bound!r}")
    return value


def _key(prompt: str, starter_code: str) -> str:
    """What equal tasks share: a hash of the text, white space apart, and of the starter code if any."""
    text = "\n".join(filter(None, (" ".join(prompt.split()), starter_code.strip())))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _mapped(row: Row, config: DataConfig, role: ColumnName) -> str:
    """The text in the column of this role, "" without one; of a list of texts the first."""
    value = next((value_in(row, column) for column in columns_of(config, role)), None)
    if value in EMPTY:
        return ""
    return checkers.texts(value)[0] if isinstance(value, str | list) else str(value)


def _id_column(config: DataConfig, row: Any) -> str | None:
    """The column of ids; None where ids are made from the text, because nobody named one."""
    named = config.id_column != DEFAULT_ID or (isinstance(row, dict) and DEFAULT_ID in row)
    return config.id_column if named else None


def _require_prompt(row: Any, id_column: str | None, config: DataConfig, place: str, where: str) -> None:
    needed = [column for column in (config.prompt_column, id_column) if column]
    if not isinstance(row, dict) or any(root_of(column, row) not in row for column in needed):
        has = f" (it has {shown(row)})" if isinstance(row, dict) else ""
        raise ConfigError(
            f"{place} has no columns {config.prompt_column!r} and {config.id_column!r}{has}; "
            f"set {where}.prompt_column and {where}.id_column"
        )


def _say(counts: Counter[str], kept: int, config: DataConfig, where: str) -> None:
    dropped = "".join(f", {counts[reason]:,} {reason}" for reason in get_args(Dropped) if counts[reason])
    progress.say(f"{where}: {counts['read']:,} rows of {config.source} read{dropped}, {kept:,} kept")


def _nothing_left(counts: Counter[str], first: Row, config: DataConfig, where: str) -> str:
    if counts["without tests"]:
        named = shown(columns_of(config, "tests"))
        return f"no row of {config.source} has tests in {named}; check {where}.columns.tests"
    held = [f"{column!r} is {str(value_in(first, column))[:40]!r}" for column in config.where]
    return f"no row of {config.source} meets {where}.where; in its first row {', '.join(held)[:200]}"
