"""A grammar of small tasks with a known law over programs: what the toy model's "humans" write.

A task of domain A or B is an aggregate of a modified list, such as "sum of even": every aggregate is written
in four algorithmically different ways, and a modifier can be forgotten, swapped for its neighbour, or applied
to all but the first number. So each task has four right programs and up to three wrong behaviours, with Zipf
frequencies that depend on the aggregate (which way) and on the modifier (which mistake): a model generalises
over tasks by their parts. Domain A is in the loop, domain B (near transfer) has other pairs of the same
parts, domain C (far) is arithmetic in words, answered by a number. Source: collapse literature, section 8.1.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any, Literal

from ssd_loop.problems.twins import CONSONANTS, DIGITS

Domain = Literal["A", "B", "C"]
Kind = Literal["right", "forgets", "swaps", "skips"]
Form = Literal["short", "loop", "names", "other"]
FORMS: tuple[Form, ...] = ("short", "loop", "names", "other")

# Conditions on a number, and what becomes of a number; {x} is the loop variable.
CONDITIONS = {
    "even": "{x}%2==0",
    "odd": "{x}%2==1",
    "positive": "{x}>0",
    "negative": "{x}<0",
    "big": "{x}>4",
    "small": "{x}<4",
}
MAPS = {
    "doubled": "2*{x}",
    "tripled": "3*{x}",
    "squared": "{x}*{x}",
    "next": "{x}+1",
    "negated": "-{x}",
    "halved": "{x}//2",
}
MODIFIERS = ("all", *CONDITIONS, *MAPS)
SWAPPED = {
    "even": "odd",
    "odd": "even",
    "positive": "negative",
    "negative": "positive",
    "big": "small",
    "small": "big",
    "doubled": "squared",
    "tripled": "doubled",
    "squared": "doubled",
    "next": "doubled",
    "negated": "next",
    "halved": "negated",
}
# Each aggregate in four ways; {g} is "E for x in xs if C", {m} the same by map and filter. Loops have a
# start, a statement with {e}, and a result.
SHORT = {
    "sum": "sum({g})",
    "count": "sum(1 for {x} in {xs} if {c})",
    "largest": "max({g})",
    "smallest": "min({g})",
    "list": "[{g}]",
    "reversed": "[{g}][::-1]",
    "sorted": "sorted({g})",
    "twice": "2*sum({g})",
    "kinds": "len(set({g}))",
}
LOOP = {
    "sum": ("0", "r+={e}", "r"),
    "count": ("0", "r+=1", "r"),
    "largest": ("[]", "r+=[{e}]", "max(r)"),
    "smallest": ("[]", "r+=[{e}]", "min(r)"),
    "list": ("[]", "r+=[{e}]", "r"),
    "reversed": ("[]", "r=[{e}]+r", "r"),
    "sorted": ("[]", "r+=[{e}]", "sorted(r)"),
    "twice": ("0", "r+={e}", "2*r"),
    "kinds": ("set()", "r|={{{e}}}", "len(r)"),
}
NAMES = {
    "sum": "return sum(ys)",
    "count": "return len(ys)",
    "largest": "return max(ys)",
    "smallest": "return min(ys)",
    "list": "return ys",
    "reversed": "return ys[::-1]",
    "sorted": "ys.sort()\n return ys",
    "twice": "return 2*sum(ys)",
    "kinds": "return len(set(ys))",
}
OTHER = {
    "sum": "sum({m})",
    "count": "len(list({m}))",
    "largest": "sorted({m})[-1]",
    "smallest": "sorted({m})[0]",
    "list": "list({m})",
    "reversed": "list({m})[::-1]",
    "sorted": "sorted({m})",
    "twice": "2*sum({m})",
    "kinds": "len(set({m}))",
}
AGGREGATES = tuple(SHORT)

ZIPF = 1.0  # weight of the k-th likeliest way to write a task: 1 / k**ZIPF
RIGHT = {"easy": 0.82, "medium": 0.62, "hard": 0.25}  # share of right programs among what humans write
MISTAKES = (0.6, 0.25, 0.15)  # shares of the three wrong behaviours
COMMENTED, SECOND_VARIABLE = 0.15, 0.3  # shares of programs with a comment, with n for x
COMMENTS = (" # ok", " # yes", " # fine")
TESTS, TEST_NUMBERS, TEST_RANGE = 2, 8, 9
IN_LOOP = 50  # tasks of domain A

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
SLIPS = 0.25  # share of answers in domain C that are one too high
FAR = 24  # problems of domain C that are measured


@dataclass(frozen=True)
class Task:
    """One task of domain A or B.

    Attributes:
        tier: How often humans get it right: easy, medium or hard.
        tests: Calls' argument and expected result; every mistake fails each.
    """

    aggregate: str
    modifier: str
    domain: Domain
    tier: str
    tests: tuple[tuple[tuple[int, ...], Any], ...]

    @property
    def id(self) -> str:
        """Such as "sum-even"."""
        return f"{self.aggregate}-{self.modifier}"


@dataclass(frozen=True)
class Program:
    """One way to write a task, right or not, without its names."""

    kind: Kind
    form: Form


@dataclass(frozen=True)
class Style:
    """The names and comments of one rendering."""

    function: str = "f"
    argument: str = "xs"
    variable: str = "x"
    comments: tuple[str, ...] = ()


PLAIN = Style()


def prompt(task: Task, style: Style = PLAIN) -> str:
    """What is asked: a comment and a signature."""
    return f"# {task.aggregate} of {task.modifier}\ndef {style.function}({style.argument}):\n"


def source(task: Task, program: Program, style: Style = PLAIN) -> str:
    """The program as Python source, without a last line break."""
    modifier = task.modifier
    if program.kind == "forgets":
        modifier = "all"
    elif program.kind == "swaps":
        modifier = SWAPPED[modifier]
    items = style.argument + ("[1:]" if program.kind == "skips" else "")
    body = _body(task.aggregate, modifier, program.form, items, style.variable)
    lines = [f"def {style.function}({style.argument}):", *style.comments, *(f" {line}" for line in body)]
    return "\n".join(lines)


def answer(task: Task, program: Program, style: Style = PLAIN) -> str:
    """The program as the model says it: in a fenced block."""
    return fenced(source(task, program, style))


def fenced(code: str) -> str:
    """Code in a fenced block."""
    return f"```python\n{code}\n```"


def _body(aggregate: str, modifier: str, form: Form, items: str, x: str) -> list[str]:
    condition = CONDITIONS.get(modifier, "").format(x=x)
    value = MAPS.get(modifier, "{x}").format(x=x)
    comprehension = f"{value} for {x} in {items}" + (f" if {condition}" if condition else "")
    mapped = f"filter(lambda {x}:{condition},{items})" if condition else f"map(lambda {x}:{value},{items})"
    if form == "short":
        # Only count asks for a condition where there may be none: a number is always equal to itself.
        truth = condition or f"{x}=={x}"
        return ["return " + SHORT[aggregate].format(g=comprehension, x=x, xs=items, c=truth)]
    if form == "other":
        return ["return " + OTHER[aggregate].format(m=mapped)]
    if form == "names":
        return [f"ys=[{comprehension}]", *NAMES[aggregate].split("\n ")]
    start, statement, result = LOOP[aggregate]
    inner = [f" if {condition}:", f"  {statement}"] if condition else [f" {statement}"]
    inner = [line.format(e=value) for line in inner]
    return [f"r={start}", f"for {x} in {items}:", *inner, f"return {result}"]


def kinds(task: Task) -> tuple[Kind, ...]:
    """Right first, then the mistakes from the likeliest on."""
    wrong = [k for k in ("forgets", "swaps", "skips") if task.modifier != "all" or k == "skips"]
    random.Random(f"mistakes {task.modifier}").shuffle(wrong)
    return ("right", *wrong)


def forms(aggregate: str) -> tuple[Form, ...]:
    """The four ways from the likeliest on."""
    order = list(FORMS)
    random.Random(f"ways {aggregate}").shuffle(order)
    return tuple(order)


def law(task: Task) -> Mapping[Program, float]:
    """How often humans write which program; sums to 1."""
    zipf = [1.0 / rank**ZIPF for rank in range(1, len(FORMS) + 1)]
    ways = {form: weight / sum(zipf) for form, weight in zip(forms(task.aggregate), zipf, strict=True)}
    wrong = kinds(task)[1:]
    shares = [share / sum(MISTAKES[: len(wrong)]) for share in MISTAKES[: len(wrong)]]
    right = RIGHT[task.tier]
    masses = dict(zip(wrong, ((1.0 - right) * share for share in shares), strict=True)) | {"right": right}
    return {Program(kind, form): masses[kind] * ways[form] for kind in kinds(task) for form in FORMS}


def draw(task: Task, rng: random.Random, kinds_of: Sequence[Kind] | None = None) -> Program:
    """A program as humans write them; `kinds_of` leaves the others out."""
    chosen = {p: weight for p, weight in law(task).items() if kinds_of is None or p.kind in kinds_of}
    return rng.choices(list(chosen), list(chosen.values()))[0]


def style(rng: random.Random, *, renamed: bool = False) -> Style:
    """Names and comments as humans choose them; `renamed`: those of a twin (`ssd_loop.problems.twins`)."""
    letters = [rng.choice(part) for part in (CONSONANTS, DIGITS, CONSONANTS, DIGITS)]
    names = (f"task_{''.join(letters)}", "arg_1") if renamed else ("f", "xs")
    variable = "n" if rng.random() < SECOND_VARIABLE else "x"
    comments = (rng.choice(COMMENTS),) if rng.random() < COMMENTED else ()
    return Style(*names, variable, comments)


@cache
def tasks(domain: Domain) -> tuple[Task, ...]:
    """The tasks of domain A or B, in the order of their ids; the parts of all are in both."""
    pairs = [pair for pair in product(AGGREGATES, MODIFIERS) if _is_task(*pair)]
    random.Random("domains").shuffle(pairs)
    chosen = pairs[:IN_LOOP] if domain == "A" else pairs[IN_LOOP:]
    return tuple(sorted((_task(*pair, domain) for pair in chosen), key=lambda task: task.id))


def _is_task(aggregate: str, modifier: str) -> bool:
    """Whether the pair is worth asking: its mistakes give something else."""
    if aggregate in ("count", "kinds"):
        return modifier in CONDITIONS or modifier == "all"
    same = {"largest": ("big", "positive"), "smallest": ("small", "negative"), "list": ("all",)}
    return modifier not in same.get(aggregate, ())


def _task(aggregate: str, modifier: str, domain: Domain) -> Task:
    bare = Task(aggregate, modifier, domain, _tier(aggregate, modifier), ())
    return replace(bare, tests=_tests(bare))


def _tier(aggregate: str, modifier: str) -> str:
    """Difficulty by parts: some aggregates and modifiers are harder."""
    hard = (aggregate in ("reversed", "kinds", "twice")) + (
        2 * (modifier in ("halved", "negated", "small", "tripled")) + (modifier in ("odd", "squared", "big"))
    )
    return "easy" if hard == 0 else "medium" if hard == 1 else "hard"


def _tests(task: Task) -> tuple[tuple[tuple[int, ...], Any], ...]:
    """Inputs on which all ways agree and every mistake gives something else than is right.

    The programs are this file's own, so they run here and not in the sandbox.
    """
    rng = random.Random(f"tests {task.id}")
    functions = {kind: [_function(task, Program(kind, form)) for form in FORMS] for kind in kinds(task)}
    found: list[tuple[tuple[int, ...], Any]] = []
    for _ in range(2000):
        numbers = tuple(rng.randint(-TEST_RANGE, TEST_RANGE) for _ in range(TEST_NUMBERS))
        results = {kind: [_result(f, numbers) for f in written] for kind, written in functions.items()}
        told = [repr(result[0]) for result in results.values()]  # the right one first
        if all(len(set(map(repr, r))) == 1 for r in results.values()) and told.count(told[0]) == 1:
            found.append((numbers, results["right"][0]))
        if len(found) == TESTS:
            return tuple(found)
    raise AssertionError(f"{task.id}: no input tells its mistakes apart")


def _function(task: Task, program: Program) -> Callable[[list[int]], Any]:
    space: dict[str, Any] = {}
    exec(source(task, program), space)
    written: Callable[[list[int]], Any] = space["f"]
    return written


def _result(function: Callable[[list[int]], Any], numbers: Sequence[int]) -> Any:
    try:
        return function(list(numbers))
    except (ValueError, IndexError) as error:  # nothing is left to choose from
        return type(error)


# Domain C.


def sums() -> tuple[tuple[str, int], ...]:
    """Every question of domain C and its answer."""
    values = list(enumerate(NUMBERS))
    return tuple(
        (f"{a} {operator} {b}", i + j if operator == "plus" else i - j)
        for (i, a), operator, (j, b) in product(values, ("plus", "minus"), values)
    )


def said(value: int) -> str:
    """An answer of domain C."""
    return f"it is {value}"


def far() -> tuple[tuple[str, int], ...]:
    """The questions of domain C that are measured."""
    return tuple(sorted(random.Random("far").sample(sums(), FAR)))


# Conversations, as the model reads and writes them.


@dataclass(frozen=True)
class Talk:
    """A question and several answers of different people to it."""

    question: str
    answers: tuple[str, ...]


def talk(domain: Domain, rng: random.Random, answers: int, *, renamed: bool = False) -> Talk:
    """A fresh draw from the grammar."""
    if domain == "C":
        question, value = rng.choice(sums())
        return Talk(question, tuple(said(value + (rng.random() < SLIPS)) for _ in range(answers)))
    task = rng.choice(tasks(domain))
    base = style(rng, renamed=renamed)
    replies = []
    for _ in range(answers):
        own = style(rng)
        chosen = Style(base.function, base.argument, own.variable, own.comments)
        replies.append(answer(task, draw(task, rng), chosen))
    return Talk(prompt(task, base), tuple(replies))
