"""Which rows a round trains on: this round's samples, those of all rounds, and human-written ones.

Source of the three policies: replace and accumulate are those of the model-collapse literature
(Gerstgrasser et al. 2024, arXiv 2404.01413), accumulate-subsample keeps the compute of one round (Kazdan et
al. 2024, arXiv 2410.16713).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from ssd_loop.problems import Problem
from ssd_loop.programs import extract_code
from ssd_loop.prompts import Renderer
from ssd_loop.records import Sample
from ssd_loop.training import TrainingRow

Policy = Literal["replace", "accumulate", "accumulate-subsample"]


def chosen(policy: Policy, rounds: Sequence[Sequence[Sample]], seed: int) -> list[Sample]:
    """The samples that are trained on, in the order of their rounds.

    Args:
        policy: replace: the last round's; accumulate: all; accumulate-subsample: as many as the last round
            has, drawn without replacement from all.
        rounds: Kept samples of every round, the current one last.
        seed: Decides the draw.
    """
    everything = [sample for kept in rounds for sample in kept]
    if policy == "replace":
        return list(rounds[-1])
    if policy == "accumulate":
        return everything
    picked = random.Random(seed).sample(range(len(everything)), len(rounds[-1]))
    return [everything[index] for index in sorted(picked)]


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
