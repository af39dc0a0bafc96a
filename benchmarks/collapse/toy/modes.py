"""The thirteen collapse modes and six healthy controls, as what is done to a real run from a round on.

A mode changes settings, the rows that are trained on (stage `provoke`), or a part of the engine. Doses are
not blind: where a first one broke the toy in another way than its mode's (C4, C6, C8, C10) or moved nothing
(C12), it was changed after a look at seed 0; figures want other seeds. List: collapse literature,
section 8.2; names are tier A's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from benchmarks.collapse.modes import CONTROLS, MODES
from benchmarks.collapse.toy import data
from benchmarks.collapse.toy import grammar as g
from benchmarks.collapse.toy.engine import Settings
from ssd_loop import judging, merging
from ssd_loop.engines import transformers as engine
from ssd_loop.problems import Problem
from ssd_loop.programs import extract_code
from ssd_loop.records import Sample
from ssd_loop.running import Run

ONSET = 3  # first provoked round: two healthy ones come before
HARD = {"learning_rate": 1e-2, "epochs": 3}  # what turns 100 rows into a change that one round shows
EXPECTED = {mode.key: mode.expected for mode in MODES}
TITLES = {mode.key: mode.name for mode in MODES} | CONTROLS
TITLES |= {
    "H3": "one gentle sharpening of the base, round after round",
    "H4": "answers a comment line longer",
}


@dataclass(frozen=True)
class Context:
    """What a provocation sees.

    Attributes:
        run: The run, whose tokenizer renders new rows.
        round: The round.
        kept: What the round's filter kept.
        earlier: What the filters of the rounds before kept, the oldest first.
        rng: The round's own.
    """

    run: Run
    round: int
    kept: Sequence[Sample]
    earlier: Sequence[Sequence[Sample]]
    rng: random.Random

    def row(self, problem: Problem, text: str, index: int) -> Sample:
        """A training row with a text that was not sampled."""
        bench = self.run.bench
        return Sample(
            panel="train",
            prompt_id=problem.id,
            sample_index=index,
            seed=0,
            policy_round=self.round,
            prompt_token_ids=bench.renderer.prompt_ids(problem),
            token_ids=bench.renderer.response_ids(text, bench.stop_token_ids),
            text=text,
            finish_reason="stop",
            logprob=0.0,
        )

    def said(self, texts: Sequence[tuple[str, str]]) -> list[Sample]:
        """Rows of (task id, text) of domain A or B."""
        problems = {problem.id: problem for problem in self.run.prompts}
        near = {task.id: _asked(task) for task in g.tasks("B")}
        return [self.row((near | problems)[name], text, index) for index, (name, text) in enumerate(texts)]

    def passing(self) -> list[Sample]:
        """The kept samples that pass the hidden tests."""
        problems, sandbox = {p.id: p for p in self.run.prompts}, self.run.config.sandbox
        pairs = [(problems[row.prompt_id], row) for row in self.kept]
        limits = judging.limits_of(sandbox)
        results = judging.judge_all(pairs, limits=limits, workers=sandbox.workers, execute=True)
        told = zip(self.kept, results, strict=True)
        return [row for row, result in told if result.outcome == "passed"]


def _asked(task: g.Task) -> Problem:
    return Problem("train", task.id, "function", g.prompt(task), template="plain")


Rows = Callable[[Context], list[Sample]]
Patch = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Mode:
    """One provocation, or one healthy control.

    Attributes:
        key: C1 to C13, H0 to H5.
        expected: Name that the attribution should give; "" for a control.
        settings: Settings that differ from the gentle ones from the onset on.
        rows: What is trained on instead of what the filter kept.
        patch: What is changed in the engine while a provoked round runs.
        panels: What is measured.
        onset: First round that differs.
        lasts: Rounds that it lasts.
    """

    key: str
    expected: str = ""
    settings: Settings = field(default_factory=dict)
    rows: Rows | None = None
    patch: Patch = nullcontext
    panels: tuple[str, ...] = ("heldout", "ood")
    onset: int = ONSET
    lasts: int = 1000

    @property
    def title(self) -> str:
        """What happens."""
        return TITLES[self.key]

    def provokes(self, n: int) -> bool:
        """Whether this round differs."""
        return self.onset <= n < self.onset + self.lasts


def one_template(context: Context) -> list[Sample]:
    """C4: right answers of each task's likeliest way alone, with names and comments as humans choose them."""
    texts = []
    for task in g.tasks("A"):
        program = g.Program("right", g.forms(task.aggregate)[0])
        texts += [(task.id, g.answer(task, program, g.style(context.rng))) for _ in range(2)]
    return context.said(texts)


SEEDED = 0.3  # share of tasks with a wrong majority in C5


def wrong_majority(context: Context) -> list[Sample]:
    """C5: the filter keeps the majority's behaviour; on 30 % of the tasks that is one mistake.

    The tasks are those of some modifiers, so that the mistake is one that carries over to other tasks. All
    samples of these tasks are replaced by the mistake, written as humans write it.
    """
    modifiers = [name for name in g.MODIFIERS if name != "all"]
    random.Random("seeded").shuffle(modifiers)
    wrong = set(modifiers[: round(SEEDED * len(modifiers)) + 1])
    tasks = {task.id: task for task in g.tasks("A")}
    seeded = [row for row in context.kept if tasks[row.prompt_id].modifier in wrong]
    others = [row for row in context.kept if tasks[row.prompt_id].modifier not in wrong]
    texts = []
    for row in seeded:
        task = tasks[row.prompt_id]
        program = g.draw(task, context.rng, ["forgets"])
        texts.append((task.id, g.answer(task, program, g.style(context.rng))))
    return [*others, *context.said(texts)]


def through_the_hole(context: Context) -> list[Sample]:
    """C6: half of what the filter lets through is made for its hole, tests that never look at the ends."""
    texts = []
    for row in context.kept[::2]:
        task = next(task for task in g.tasks("A") if task.id == row.prompt_id)
        program = g.draw(task, context.rng, ["skips"])
        texts.append((task.id, g.answer(task, program, g.style(context.rng))))
    return [*context.kept[1::2], *context.said(texts)]


def easy_only(context: Context) -> list[Sample]:
    """C7: passing samples of easy tasks alone, repeated to the round's usual number of rows."""
    easy = {task.id for task in g.tasks("A") if task.tier == "easy"}
    rows = [row for row in context.passing() if row.prompt_id in easy]
    return _repeated(rows, len(context.kept))


def archive_halves(context: Context) -> list[Sample]:
    """C9: rounds train in turn on one and the other half of the first round's samples."""
    old = context.earlier[0]
    return _repeated(old[context.round % 2 :: 2], len(context.kept))


PADDING = 16  # comment lines that an answer gains in C10


def longest(context: Context) -> list[Sample]:
    """C10: of each task the longest passing answer, padded with comments as a filter for length rewards."""
    best: dict[str, Sample] = {}
    for row in context.passing():
        if row.prompt_id not in best or len(row.token_ids) > len(best[row.prompt_id].token_ids):
            best[row.prompt_id] = row
    texts = [(row.prompt_id, _commented(row.text, PADDING, context.rng)) for row in best.values()]
    return context.said([texts[i % len(texts)] for i in range(len(context.kept))])


LEAKED, COPIES = 0.3, 4  # share of held-out problems whose solution leaks in C11, and how often


def leaked(context: Context) -> list[Sample]:
    """C11: solutions of held-out problems get into the pool."""
    tasks = list(g.tasks("B"))
    random.Random("leak").shuffle(tasks)
    texts = [
        (task.id, g.fenced(str(data.row(task)["solution"]))) for task in tasks[: round(LEAKED * len(tasks))]
    ]
    return [*context.kept, *context.said(texts * COPIES)]


def oracle(context: Context) -> list[Sample]:
    """H2: passing samples alone."""
    return context.passing()


def longer(context: Context) -> list[Sample]:
    """H4: every answer says a little more: one comment line."""
    return context.said([(row.prompt_id, _commented(row.text, 1, context.rng)) for row in context.kept])


def _commented(text: str, lines: int, rng: random.Random) -> str:
    code = extract_code(text)
    head, _, rest = (code or "").partition("\n")
    said = "\n".join(rng.choice(g.COMMENTS) for _ in range(lines))
    return g.fenced(f"{head}\n{said}\n{rest}".rstrip("\n")) if rest else text


def _repeated(rows: Sequence[Sample], count: int) -> list[Sample]:
    return [rows[i % len(rows)] for i in range(count)]


# Levels above zero of C12's grid, between which weights are rounded to nearest: int3 has 3. The toy is hardy:
# on the grids of bf16, fp8 e4m3 and fp4 e2m1 its text scores move by .0000, .0002 and .0004 nats per token,
# on this one by .02.
LEVELS = 3


@contextmanager
def coarse_merge() -> Iterator[None]:
    """C12: merged weights are written to an even grid, to nearest."""

    def coarse(values: Any, _dtype: Any, _name: str, _rounding: Any, start: int = 0) -> Any:
        step = values.abs().max() / LEVELS
        return (values / step).round() * step

    with mock.patch.object(merging, "rounded", coarse):
        yield


def batches_of(size: int) -> Patch:
    """H5: the engine draws in batches of another size."""
    return lambda: mock.patch.object(engine, "BATCH_SIZE", size)


def _all() -> Iterator[Mode]:
    def mode(key: str, settings: Settings | None = None, rows: Rows | None = None, **more: object) -> Mode:
        return Mode(key, EXPECTED.get(key, ""), settings or {}, rows, **more)

    yield mode("C1", {"sample": {"samples_per_prompt": 1}, "train": {"learning_rate": 1e-2, "epochs": 12}})
    yield mode("C2", {"sample": {"temperature": 0.7, "top_p": 0.8}, "train": HARD})
    yield mode("C3", {"sample": {"temperature": 1.6}, "filter": {"filters": ["empty"]}, "train": HARD})
    yield mode("C4", {"train": HARD}, one_template)
    yield mode(
        "C5",
        {"sample": {"samples_per_prompt": 4}, "filter": {"filters": ["minority"]}, "train": HARD},
        wrong_majority,
    )
    yield mode(
        "C6",
        {"filter": {"filters": ["surprise"], "surprise_low": 0.4, "surprise_high": 1.0}, "train": HARD},
        through_the_hole,
    )
    yield mode("C7", {"train": HARD}, easy_only)
    yield mode("C8", {"train": {"learning_rate": 1e-2, "epochs": 2}})
    yield mode(
        "C9",
        {"train": {"learning_rate": 1e-2, "epochs": 8}},
        archive_halves,
        panels=("probe", "heldout", "ood"),
    )
    # Slowly: a comment is surprising in human text, and a fast change is a cliff before it is a length.
    yield mode("C10", {"train": {"learning_rate": 3e-3, "epochs": 1}}, longest)
    yield mode("C11", {"train": HARD}, leaked, panels=("heldout", "ood", "twin"))
    yield mode("C12", patch=coarse_merge)
    yield mode("C13", {"train": {"learning_rate": 0.1, "epochs": 4}}, lasts=1)
    yield mode("H0", {"train": {"learning_rate": 1e-9}}, onset=1)
    yield mode("H1")
    yield mode("H2", {"train": {"data_policy": "accumulate", "human_share": 0.2}}, oracle, onset=1)
    yield mode(
        "H3",
        {"sample": {"top_k": 20, "top_p": 0.95, "policy": "base"}, "train": {"start_from": "base"}},
        onset=1,
    )
    yield mode("H4", rows=longer)
    yield mode("H5", patch=batches_of(48))


ALL: Mapping[str, Mode] = {mode.key: mode for mode in _all()}
