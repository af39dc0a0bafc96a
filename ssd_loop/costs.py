"""What every attempt of every stage cost. Reported, never decided on."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_loop.durable import append_jsonl

COSTS = "costs.jsonl"
DEVICES = 1  # one CPU or one GPU, held for as long as a stage runs


@dataclass
class Cost:
    """Seconds of wall time over all attempts, how many there were, and tokens drawn or trained on."""

    seconds: float = 0.0
    attempts: int = 0
    tokens: int = 0


def tokens_of(metrics: Mapping[str, Any]) -> int:
    """Tokens that a stage drew or trained on; 0 for stages that do neither."""
    return int(metrics.get("tokens") or metrics.get("tokens_trained") or 0)


@contextmanager
def timed(run_folder: Path, round_index: int, stage: str) -> Iterator[Cost]:
    """Log one attempt, also one that fails; the caller fills in the tokens."""
    started, finished, cost = time.monotonic(), False, Cost(attempts=1)
    try:
        yield cost
        finished = True
    finally:
        cost.seconds = time.monotonic() - started
        row = {
            "round": round_index,
            "stage": stage,
            "seconds": round(cost.seconds, 3),
            "tokens": cost.tokens,
            "device_hours": round(DEVICES * cost.seconds / 3600, 6),
            "finished": finished,
        }
        append_jsonl(run_folder / COSTS, row)


def read(run_folder: Path) -> dict[tuple[int, str], Cost]:
    """Cost of each (round, stage); a torn last line is skipped."""
    costs: dict[tuple[int, str], Cost] = defaultdict(Cost)
    path = run_folder / COSTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        cost = costs[row["round"], row["stage"]]
        cost.seconds += row["seconds"]
        cost.attempts += 1
        cost.tokens += row["tokens"]
    return dict(costs)
