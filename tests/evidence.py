"""Evidence for the decision rule, drawn from laws that a test chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_loop.monitors.draws import Draws
from ssd_loop.monitors.evidence import Evidence, Panel, Texts
from ssd_loop.monitors.positions import K
from ssd_loop.records import TextScore, Trait

Array = NDArray[Any]
PROBLEMS, SAMPLES, SETS = 120, 8, 4  # of every panel; sets at round 0
TEXTS, POSITIONS, WORDS = 24, 20, 30  # reference texts, positions of each, vocabulary
FORKS, MIDDLE, LOCKS = slice(0, 4), slice(4, 10), slice(10, 20)


def even(kinds: int) -> tuple[float, ...]:
    return (1.0 / kinds,) * kinds


@dataclass(frozen=True)
class Law:
    """How a model answers the problems of a panel.

    Attributes:
        right: Chance of a right answer, by problem.
        kinds: Law of the programs of right answers; wrong ones have 40 of their own, evenly.
        mistakes: Law of the behaviours of wrong answers.
        parses: Chance that a program parses; a right one always does.
        accepts: Chance that the filter accepts a right and a wrong answer.
        gap: How many standard deviations right answers score above wrong ones.
    """

    right: Array
    kinds: tuple[float, ...] = even(8)
    mistakes: tuple[float, ...] = even(8)
    parses: float = 1.0
    accepts: tuple[float, float] = (0.9, 0.5)
    gap: float = 1.0

    def draw(self, samples: int, rng: np.random.Generator) -> Draws:
        size = (len(self.right), samples)
        passed = rng.random(size) < self.right[:, None]
        program = np.where(
            passed, rng.choice(len(self.kinds), size, p=self.kinds), 100 + rng.integers(40, size=size)
        )
        mistake = 1 + rng.choice(len(self.mistakes), size, p=self.mistakes)
        return Draws(
            passed=passed,
            shape=np.where(passed | (rng.random(size) < self.parses), program, -1),
            behaviour=np.where(passed, 0, mistake),
            accepted=rng.random(size) < np.where(passed, *self.accepts),
            score=rng.standard_normal(size) + self.gap * passed,
        )


HEALTHY = Law(np.random.default_rng(7).beta(1.0, 1.2, PROBLEMS) * 0.9 + 0.05)


def panel(
    now: Law,
    rng: np.random.Generator,
    *,
    before: Law = HEALTHY,
    samples: int = SAMPLES,
    more: int = 0,
    archive: Draws | None = None,
    judged: bool = True,
) -> Panel:
    """A panel whose second look, if any, adds `more` samples."""
    return Panel(
        names=tuple(f"p{i}" for i in range(len(before.right))),
        baseline=before.draw(SETS * samples, rng),
        current=now.draw(samples, rng),
        second=now.draw(more, rng) if more else None,
        archive=archive,
        judged=judged,
        is_code=True,
    )


def text_law(rng: np.random.Generator) -> Array:
    """(texts, positions, words) chances of the next word; word 0 is the human's."""
    law = np.full((TEXTS, POSITIONS, WORDS), 1.0)
    law[:, FORKS] = rng.gamma(0.6, size=law[:, FORKS].shape) + 0.02
    law[:, FORKS, 0] = law[:, FORKS].mean(axis=-1) * 4.0
    law[:, MIDDLE, 0] = 60.0
    law[:, LOCKS, 0] = rng.uniform(1000.0, 1500.0, size=law[:, LOCKS, 0].shape)
    return law / law.sum(axis=-1, keepdims=True)


def jittered(law: Array, rng: np.random.Generator, by: float = 0.02) -> Array:
    """Nearly the same law."""
    moved = law * np.exp(by * rng.standard_normal(law.shape))
    return moved / moved.sum(axis=-1, keepdims=True)


def scored(law: Array) -> list[TextScore]:
    """The texts of word 0 under a law, (texts, positions, words)."""
    with np.errstate(divide="ignore"):
        logs = np.log(law)
    ids = np.argsort(-law, axis=-1, kind="stable")[..., :K]
    return [
        TextScore(
            text_id=f"t{i}",
            logprobs=tuple(logs[i, :, 0].tolist()),
            top_ids=tuple(ids[i].ravel().tolist()),
            top_logprobs=tuple(np.take_along_axis(logs[i], ids[i], axis=-1).ravel().tolist()),
        )
        for i in range(len(law))
    ]


def traits(
    rng: np.random.Generator,
    samples: int,
    *,
    length: float = 60.0,
    cut: float = 0.02,
    loops: float = 0.0,
    unparsable: float = 0.05,
    problems: int = 60,
) -> list[Trait]:
    """Traits of held-out answers, the given shares of which are bad."""
    return [
        Trait(
            panel="heldout",
            problem_id=f"p{i}",
            sample_index=k,
            shape=None if rng.random() < unparsable else "s",
            tokens=int(length * np.exp(0.3 * rng.standard_normal())) + 1,
            cut=bool(rng.random() < cut),
            loops=bool(rng.random() < loops),
            logprob=-10.0,
        )
        for i in range(problems)
        for k in range(samples)
    ]


LAW = text_law(np.random.default_rng(8))


def evidence(
    rng: np.random.Generator,
    *,
    round_index: int = 1,
    panels: Mapping[str, Panel] | None = None,
    law: Array | None = None,
    now: Sequence[Trait] | None = None,
    merge: Mapping[str, Any] | None = None,
    leaks: Mapping[str, Sequence[str]] | None = None,
) -> Evidence:
    """A round in which nothing changed, but for what is given.

    Args:
        rng: Draws all samples.
        round_index: Which round.
        panels: Panels that replace the healthy ones, or are added.
        law: The reference texts' law now.
        now: Held-out traits now.
        merge: Metrics of the merge.
        leaks: Leaks by guard.
    """
    healthy = {name: panel(HEALTHY, rng) for name in ("probe", "heldout", "ood")}
    texts = scored(jittered(LAW, rng) if law is None else law)
    return Evidence(
        round=round_index,
        panels={**healthy, **(panels or {})},
        traits=(traits(rng, 8), traits(rng, 4) if now is None else now),
        texts=[["def f(): pass"] * 2] * 3,
        scores=Texts(scored(LAW), scored(LAW), texts),
        merge=merge or {},
        leaks=leaks or {},
    )


def worse(by: float, law: Law = HEALTHY) -> Law:
    """Every problem's chance of a right answer lower by `by`, but never below 0."""
    return replace(law, right=np.clip(law.right - by, 0.0, 1.0))


def report(rates: Array, drawn: int = 8) -> dict[str, Any]:
    """The part of an evaluation report that the best round is chosen by."""
    passed = {f"p{i}": [round(rate * drawn), drawn] for i, rate in enumerate(rates)}
    return {"panels": {"heldout": {"passed": passed}}}
