"""Hand-made rows and a scripted engine, for tests of what comes after the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssd_loop.engines import Completion, EngineName, Request, TokenScores
from ssd_loop.monitors.decision import Decision, Reading
from ssd_loop.problems import Problem
from ssd_loop.records import Result, Sample


def sample(text: str = "", **other: Any) -> Sample:
    """A sample with this text; any other column by name."""
    row = Sample(
        panel="train",
        prompt_id="p",
        sample_index=0,
        seed=1,
        policy_round=0,
        prompt_token_ids=(5, 6),
        token_ids=(7, 8, 2),
        text=text,
        finish_reason="stop",
        logprob=-3.0,
    )
    return dataclasses.replace(row, **other)


def fenced(code: str) -> str:
    """An answer that holds this code."""
    return f"Here it is:\n```python\n{code}\n```\n"


def result(problem_id: str, outcome: Any, index: int = 0, panel: str = "heldout") -> Result:
    """A result without a behaviour."""
    return Result(panel, problem_id, index, outcome, None)


def function(name: str, panel: str = "heldout", **other: Any) -> Problem:
    """A problem that asks for one function."""
    return Problem(
        panel=panel, id=name, kind="function", prompt=f"def {name}(x):\n", entry_point=name, **other
    )


@dataclass
class ScriptedEngine:
    """An engine whose completions follow from the request's seed alone, and which can die."""

    dies_after: int | None = None
    asked: list[list[Request]] = field(default_factory=list)
    name: EngineName = "transformers"

    def load(self, model_dir: Path) -> None:
        """Nothing to load."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """One completion per request."""
        self.asked.append(list(requests))
        for request in requests:
            if self.dies_after == 0:
                raise KeyboardInterrupt
            if self.dies_after is not None:
                self.dies_after -= 1
            reason: Literal["stop", "length"] = "stop" if request.seed % 3 else "length"
            ids = tuple(40 + request.seed // 7**i % 7 for i in range(4))
            stop = request.stop_token_ids[:1] if reason == "stop" else ()
            yield Completion((*ids, *stop), reason, -(request.seed % 1000) / 7)

    def score(self, texts: Sequence[Sequence[int]], top_k: int) -> Iterator[TokenScores]:
        """Every token of text number n costs n + 1 nats."""
        for number, text in enumerate(texts):
            rows = len(text) - 1
            yield TokenScores(
                np.full(rows, -(number + 1), np.float32),
                np.zeros((rows, top_k), np.int32),
                np.zeros((rows, top_k), np.float32),
            )

    def release(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing was started."""


def quiet_decision(n: int) -> Decision:
    """A decision of round `n` to go on, the base being the best round."""
    reading = Reading("harm", 1.0, 1.0, 0.03, se=0.01, t=-3.0, slow=0.0, threshold=3.1)
    reason = "no monitor is past its threshold"
    return Decision(n, "continue", "none", reason, "none", 0, 1, {"reference_nll": reading})
