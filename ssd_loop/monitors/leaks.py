"""Have panel texts come into the data? Word runs that training rows share with panels; planted constants.

A gain on a panel that was trained on is no gain. Sources: n-gram overlap as in GPT-3 (Brown et al. 2020,
arXiv 2005.14165, appendix C: lower case, words alone, 13 in a row); constants as the canaries of Carlini et
al. 2019 (arXiv 1802.08232), but kept out of training where theirs were put into it. Exact to the word: a
paraphrase is not seen, nor is text in a script without spaces, where a sentence counts as one word.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib import resources
from itertools import groupby
from types import MappingProxyType

import yaml

from ssd_loop.problems import Problem
from ssd_loop.programs import parse

# Words in a row that two texts share by no accident. Source: GPT-3, appendix C. Measured here on 490 million
# characters of Python that knows nothing of the panels (standard library and site-packages): under the rules
# of this file it shares nothing with the built-in panels and HumanEval.
STATEMENT_WORDS = 13
# A shorter statement counts as a whole, from this length on. Source: the least N of GPT-3, appendix C.
LEAST_WORDS = 8
# The same for code. Right solutions of a small task look alike: a loop over all pairs has 14 words, the body
# of the primality test that everyone writes 23. A shorter solution is never seen: it would prove nothing.
CODE_WORDS = 25
# What an answer takes from its own task in pieces of so many words or more is quoted, not leaked (ours).
PIECE_WORDS = 4
# The share of a run that must be different words with two letters in a row. Numbers in order, bits and the
# alphabet stand in many texts: without this rule the text above shares 5 runs, such as "2 3 4 ... c d e".
TELLING = 1 / 3

DIGEST_BYTES = 8  # a million rows of 300 words meet one of 100,000 runs by accident in 1 of 600,000 cases

_WORD = re.compile(r"\w+")
_TELLING_WORD = re.compile(r"[^\W\d_]{2}")
_BLOCK = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_BETWEEN_PARTS = r"[\W_]*"  # how a constant's parts may be held together; a model may write it in its own way


@dataclass(frozen=True)
class Said:
    """What one panel problem says.

    Attributes:
        statement: Prose and signature, of which `STATEMENT_WORDS` in a row are a leak.
        code: Starter code, reference solution and other code, of which `CODE_WORDS` in a row are one.
    """

    statement: str
    code: tuple[str, ...] = ()


@dataclass(frozen=True)
class Overlap:
    """A run of words that a row shares with a panel problem.

    Attributes:
        row: The row's name.
        problem: The problem as "panel/id".
        words: The longest shared run, normalised.
    """

    row: str
    problem: str
    words: str


def words(text: str) -> list[str]:
    """The words of a text in lower case: letters, digits and underscores, the rest left out."""
    return _WORD.findall(text.lower())


def grams(text: str, n: int = STATEMENT_WORDS) -> frozenset[bytes]:
    """Every run of `n` words of a text, as 64-bit BLAKE2b digests that are equal on every machine."""
    return frozenset(_digests(words(text), n))


def said(problems: Iterable[Problem]) -> dict[str, Said]:
    """What panel problems say, by "panel/id", for `overlaps`."""
    return {f"{problem.panel}/{problem.id}": _said(problem) for problem in problems}


def overlaps(
    texts: Iterable[tuple[str, str]],
    panel: Mapping[str, Said],
    known: Iterable[str] = (),
    tasks: Mapping[str, str] = MappingProxyType({}),
    n: int = STATEMENT_WORDS,
) -> list[Overlap]:
    """The rows that share a run of words with a panel problem: one overlap per row and problem, in row order.

    Left out, because it is no leak: a run that several panel problems share, which is the wording of the
    panel; a run without enough different words (`TELLING`); a run that is in `known`; a run of which fewer
    than `LEAST_WORDS` words are left without what the row's own task says, `PIECE_WORDS` or more in a row: an
    answer that repeats its task and skips some words joins others, and tasks are worded alike.

    Rows are read one by one and not kept. Measured: 0.2 s for 1,000 rows of 150 words, whatever the panels.

    Args:
        texts: (name, text) of every row.
        panel: What every panel problem says, as `said` gives it. Of equal texts, such as one problem in two
            panels, the first is named.
        known: What the training problems say themselves, prompts and solutions: an answer that quotes its
            own task proves nothing. It hides what a training prompt shares with a panel, so give the prompts
            once as `texts`, with nothing known, before their answers.
        tasks: What a row's own task says, by the row's name.
        n: Words in a row that make an overlap with a statement.
    """
    index = _index(panel, n)
    for text in known:
        found = words(text)
        for size, runs in index.items():
            for digest in _digests(found, size):
                runs.pop(digest, None)
    return [
        overlap
        for row, text in texts
        for overlap in _overlaps(row, words(text), index)
        if len(_unquoted(overlap.words.split(), words(tasks.get(row, "")))) >= min(n, LEAST_WORDS)
    ]


def _unquoted(run: list[str], task: list[str]) -> list[str]:
    """The words of a run that are in no piece of the task."""
    pieces = {tuple(task[at : at + PIECE_WORDS]) for at in range(len(task) - PIECE_WORDS + 1)}
    quoted: set[int] = set()
    for at in range(len(run) - PIECE_WORDS + 1):
        if tuple(run[at : at + PIECE_WORDS]) in pieces:
            quoted.update(range(at, at + PIECE_WORDS))
    return [word for at, word in enumerate(run) if at not in quoted]


@cache
def canaries() -> tuple[str, ...]:
    """The planted constants.

    Each stands in a fake task in ``problems/canaries.yaml``, a file among the panels that no code renders
    into a prompt. About 77 random bits each: one in a sample or a training row proves that panel
    files came into the data or into the training of the model. That none is found proves nothing.
    """
    file = resources.files("ssd_loop.problems").joinpath("canaries.yaml")
    return tuple(row["constant"] for row in yaml.safe_load(file.read_text(encoding="utf-8")))


def canary_hits(texts: Iterable[tuple[str, str]]) -> list[str]:
    """The rows that hold a planted constant, in whatever case and with whatever marks between its parts.

    Args:
        texts: (name, text) of every row.
    """
    written = (_BETWEEN_PARTS.join(constant.split("-")) for constant in canaries())
    pattern = re.compile("|".join(written), re.IGNORECASE)
    return [row for row, text in texts if pattern.search(text)]


def _said(problem: Problem) -> Said:
    """Code that a prompt shows counts as code: helpers before the function, fenced blocks."""
    prompt = problem.prompt.removeprefix(problem.preamble)
    shown = _BLOCK.findall(prompt)
    code = [
        problem.preamble,
        *shown,
        problem.starter_code,
        problem.solution,
        _without_docstrings(problem.solution),
    ]
    return Said(_BLOCK.sub("\n", prompt), tuple(dict.fromkeys(text for text in code if text.strip())))


def _without_docstrings(code: str) -> str:
    """HumanEval's solutions repeat the prompt between signature and body, which answers leave out."""
    tree = parse(code)
    lines = code.splitlines()
    for node in ast.walk(tree) if tree else ():
        if (
            isinstance(node, ast.FunctionDef | ast.ClassDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            first, last = node.body[0].lineno, node.body[0].end_lineno or node.body[0].lineno
            lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(lines)


def _index(panel: Mapping[str, Said], n: int) -> dict[int, dict[bytes, str]]:
    """The problem of every telling run that one problem alone has, by the run's length in words."""
    owners: dict[int, dict[bytes, str | None]] = {}
    seen: set[tuple[int, tuple[str, ...]]] = set()
    for name, texts in panel.items():
        statement = words(texts.statement)
        parts = [(max(min(n, len(statement)), min(n, LEAST_WORDS)), statement)]
        parts += [(max(CODE_WORDS, n), words(code)) for code in texts.code]
        fresh = [(size, found) for size, found in parts if (size, tuple(found)) not in seen]
        seen.update((size, tuple(found)) for size, found in fresh)
        for size, found in fresh:
            runs = owners.setdefault(size, {})
            for start, digest in enumerate(_digests(found, size)):
                if _telling(found[start : start + size]):
                    runs[digest] = name if runs.get(digest, name) == name else None
    return {
        size: {digest: name for digest, name in runs.items() if name is not None}
        for size, runs in owners.items()
    }


def _telling(run: list[str]) -> bool:
    return len({word for word in run if _TELLING_WORD.search(word)}) >= TELLING * len(run)


def _digests(found: list[str], size: int) -> Iterator[bytes]:
    for start in range(len(found) - size + 1):
        yield blake2b(" ".join(found[start : start + size]).encode(), digest_size=DIGEST_BYTES).digest()


def _overlaps(row: str, found: list[str], index: Mapping[int, Mapping[bytes, str]]) -> list[Overlap]:
    longest: dict[str, list[str]] = {}
    for size, runs in index.items():
        hits = [(start, runs[digest]) for start, digest in enumerate(_digests(found, size)) if digest in runs]
        # Hits that follow each other word by word have the same difference of place and number.
        for (_, name), near in groupby(enumerate(hits), key=lambda hit: (hit[1][0] - hit[0], hit[1][1])):
            starts = [start for _, (start, _) in near]
            shared = found[starts[0] : starts[-1] + size]
            if len(shared) > len(longest.get(name, ())):
                longest[name] = shared
    return [Overlap(row, name, " ".join(shared)) for name, shared in longest.items()]
