"""The toy's panels as JSONL files that the engine reads as it reads any data set, and its reference texts."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.collapse.toy import grammar as g
from benchmarks.collapse.toy import tokens
from ssd_loop.problems import ReferenceText

REFERENCES, ANSWERS = 12, 4  # fresh talks that stand for human text, and answers in each
REFERENCE_DOMAINS: tuple[g.Domain, ...] = ("A", "A", "B", "B", "A", "B")  # repeated; domain C is too short
COLUMNS = {"tests": "tests", "solution": "solution", "tier": "tier", "entry_point": "entry_point"}


def write(folder: Path) -> None:
    """``prompts.jsonl`` (domain A), ``heldout.jsonl`` (B), ``probe.jsonl`` (both) and ``ood.jsonl`` (C)."""
    folder.mkdir(parents=True, exist_ok=True)
    inside, near = g.tasks("A"), g.tasks("B")
    _write(folder / "prompts.jsonl", map(row, inside))
    _write(folder / "heldout.jsonl", map(row, near))
    _write(folder / "probe.jsonl", map(row, (*inside, *near)))
    far = ({"id": q.replace(" ", "-"), "prompt": q, "answer": str(value)} for q, value in g.far())
    _write(folder / "ood.jsonl", far)


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def row(task: g.Task) -> dict[str, Any]:
    """A task as a row of a data set; its solution is one that a human wrote."""
    tests = [
        {"input": json.dumps(numbers), "output": json.dumps(value), "testtype": "functional"}
        for numbers, value in task.tests
    ]
    written = g.draw(task, random.Random(f"solution {task.id}"), ["right"])
    return {
        "id": task.id,
        "prompt": g.prompt(task),
        "tests": tests,
        "solution": g.source(task, written),
        "tier": task.tier,
        "entry_point": g.PLAIN.function,
    }


def source(folder: Path, name: str) -> dict[str, Any]:
    """The `DataConfig` of one of the files, as plain data."""
    found: dict[str, Any] = {"source": str(folder / f"{name}.jsonl"), "template": "plain"}
    if name == "ood":
        return found | {"columns": {"tests": "answer"}, "checker": "exact"}
    return found | {"columns": COLUMNS, "checker": "stdin"}


@cache
def references() -> tuple[ReferenceText, ...]:
    """Fresh talks, right and wrong answers as humans write them: several answers to one question.

    The question is two words of ten nats; with one answer alone, a fifth of all positions by entropy, which
    are the forks, would be questions, which no training on answers moves.
    """
    rng = random.Random("references")
    domains: Sequence[g.Domain] = [REFERENCE_DOMAINS[i % len(REFERENCE_DOMAINS)] for i in range(REFERENCES)]
    talks = [g.talk(domain, rng, ANSWERS) for domain in domains]
    return tuple(ReferenceText(f"talk-{i:02d}", tokens.written(talk)) for i, talk in enumerate(talks))
