"""Which rows a round trains on: this round's samples, those of all rounds, and human-written ones.

Source of the three policies: replace and accumulate are those of the model-collapse literature
(Gerstgrasser et al. 2024, arXiv 2404.01413), accumulate-subsample keeps the compute of one round (Kazdan et
al. 2024, arXiv 2410.16713).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from ssd_loop.problems import Problem
from ssd_loop.programs import extract_code
from ssd_loop.prompts import Renderer
from ssd_loop.records import Sample
from ssd_loop.training_rows import Counted, TrainingRow

Policy = Literal["replace", "accumulate", "accumulate-subsample"]


@dataclass(frozen=True)
class Chosen:
    """The samples that are trained on, in the order of their rounds.

    Attributes:
        policy: replace: the last round's; accumulate: all; accumulate-subsample: as many as the last round
            has, drawn without replacement from all.
        rounds: Kept samples of every round, the current one last.
        seed: Decides the draw.
    """

    policy: Policy
    rounds: Sequence[Counted[Sample]]
    seed: int

    def __len__(self) -> int:
        if self.policy == "accumulate":
            return sum(map(len, self.rounds))
        return len(self.rounds[-1])

    def __iter__(self) -> Iterator[Sample]:
        if self.policy == "replace":
            return iter(self.rounds[-1])
        everything = chain.from_iterable(self.rounds)
        if self.policy == "accumulate":
            return everything
        total = sum(map(len, self.rounds))
        picked = set(random.Random(self.seed).sample(range(total), len(self)))
        return (sample for index, sample in enumerate(everything) if index in picked)


@dataclass(frozen=True)
class Mixture:
    """The rows of a training: sampled ones, then human-written ones."""

    samples: Counted[Sample]
    human: Sequence[TrainingRow]

    def __len__(self) -> int:
        return len(self.samples) + len(self.human)

    def __iter__(self) -> Iterator[TrainingRow]:
        sampled = (TrainingRow(row.prompt_token_ids, row.token_ids) for row in self.samples)
        return chain(sampled, self.human)


def human_count(share: float, sampled: int) -> int:
    """Human-written rows that make up `share` of a training beside so many samples."""
    return round(sampled * share / (1.0 - share))


def human_rows(
    problems: Sequence[Problem],
    count: int,
    *,
    renderer: Renderer,
    stop_token_ids: tuple[int, ...],
    seed: int,
) -> list[TrainingRow]:
    """Prompts with their human-written solutions as the model's turn; fewer than `count` if no more exist.

    Args:
        problems: The training prompts.
        count: How many rows.
        renderer: The base model's template.
        stop_token_ids: Every token that ends a turn.
        seed: Decides which problems.
    """
    solved = [problem for problem in problems if problem.solution.strip()]
    picked = random.Random(seed).sample(range(len(solved)), min(count, len(solved)))
    return [
        TrainingRow(
            renderer.prompt_ids(solved[index]),
            renderer.response_ids(answer(solved[index]), stop_token_ids),
        )
        for index in sorted(picked)
    ]


def answer(problem: Problem) -> str:
    """The human-written solution as an answer: code goes into the fenced block that prompts ask for."""
    solution = problem.solution
    if problem.kind == "exact" or extract_code(solution) is not None:
        return solution
    language = "sh" if problem.kind == "shell" else "python"
    return f"```{language}\n{solution.rstrip()}\n```"
