"""What the monitors see of a panel: one small array per trait, a row per problem, a column per sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_loop.records import Result, Trait

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
NOTHING = -1  # no shape: does not parse; no behaviour: did not run


@dataclass(frozen=True)
class Draws:
    """Samples of n problems, N each, with any leading axes: every array is (..., n, N).

    Attributes:
        passed: Whether the hidden tests passed.
        shape: Canonical program, numbered within its problem; -1 if it does not parse.
        behaviour: What it returned on the probe inputs, numbered within its problem; -1 if it did not run.
        accepted: Whether the run's own filter would train on it.
        score: Mean log-prob per token under the model's own raw law, nats.
    """

    passed: Bools
    shape: Ints
    behaviour: Ints
    accepted: Bools
    score: NDArray[np.float64]

    @property
    def samples(self) -> int:
        """N, samples per problem."""
        return int(self.passed.shape[-1])

    @property
    def problems(self) -> int:
        """n, problems."""
        return int(self.passed.shape[-2])

    def over(self, change: Callable[[Any], Any]) -> Draws:
        """The same change made to every array."""
        return Draws(**{field.name: change(getattr(self, field.name)) for field in fields(self)})

    def part(self, start: int, stop: int | None) -> Draws:
        """Some of every problem's samples."""
        return self.over(lambda array: array[..., start:stop])

    def chosen(self, index: Ints) -> Draws:
        """Samples picked by `index` (..., n, k) from draws without leading axes."""
        rows = np.arange(self.problems)[:, None]
        return self.over(lambda array: array[rows, index])


def joined(first: Draws, second: Draws) -> Draws:
    """The samples of both."""
    arrays = {
        field.name: np.concatenate([getattr(first, field.name), getattr(second, field.name)], axis=-1)
        for field in fields(first)
    }
    return Draws(**arrays)


def counts(kinds: Ints, counted: Bools) -> Ints:
    """How many of the counted samples are of each kind: (..., n, K) for kinds 0 .. K - 1.

    Args:
        kinds: (..., n, N) numbers from 0 on, or -1, which is never counted.
        counted: (..., n, N) which samples count.
    """
    size = int(kinds.max(initial=0)) + 1
    rows = kinds.size // kinds.shape[-1]
    place = np.arange(rows).repeat(kinds.shape[-1]) * size + kinds.ravel()
    seen = (counted & (kinds >= 0)).ravel()
    return np.bincount(place[seen], minlength=rows * size).reshape(*kinds.shape[:-1], size)


Key = tuple[str, int]


def collect(
    sets: Sequence[tuple[Sequence[Result], Sequence[Trait], Mapping[Key, bool]]],
) -> tuple[tuple[str, ...], list[Draws]]:
    """Problem ids and the draws of several sets of samples of one panel, numbered alike in all of them.

    Args:
        sets: For each set its results, the traits parallel to them, and by (problem id, sample index)
            whether the run's filter accepts the sample. Every set has the same problems, and the same
            number of samples of each.
    """
    names = tuple(dict.fromkeys(row.problem_id for row in sets[0][0]))
    rows = {name: index for index, name in enumerate(names)}
    shapes, behaviours = _Numbers(len(names)), _Numbers(len(names))
    found = []
    for results, traits, accepted in sets:
        width = len(results) // len(names)
        draws = Draws(
            passed=np.zeros((len(names), width), dtype=bool),
            shape=np.full((len(names), width), NOTHING),
            behaviour=np.full((len(names), width), NOTHING),
            accepted=np.zeros((len(names), width), dtype=bool),
            score=np.zeros((len(names), width)),
        )
        filled = [0] * len(names)
        for result, trait in zip(results, traits, strict=True):
            row = rows[result.problem_id]
            column, filled[row] = filled[row], filled[row] + 1
            draws.passed[row, column] = result.outcome == "passed"
            draws.shape[row, column] = shapes.of(row, trait.shape)
            draws.behaviour[row, column] = behaviours.of(row, result.behaviour)
            draws.accepted[row, column] = accepted[result.problem_id, result.sample_index]
            draws.score[row, column] = trait.logprob / max(trait.tokens, 1)
        found.append(draws)
    return names, found


class _Numbers:
    """Small numbers for hashes, within each problem."""

    def __init__(self, problems: int) -> None:
        self._known: list[dict[str, int]] = [{} for _ in range(problems)]

    def of(self, problem: int, name: str | None) -> int:
        known = self._known[problem]
        return NOTHING if name is None else known.setdefault(name, len(known))
