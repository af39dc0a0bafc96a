"""What every attempt of every stage cost. Reported, never decided on."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ssd_loop.store import append_jsonl

COSTS = "costs.jsonl"


@dataclass
class Cost:
    """Seconds of wall time over all attempts, and how many there were."""

    seconds: float = 0.0
    attempts: int = 0


@contextmanager
def timed(run_folder: Path, round_index: int, stage: str) -> Iterator[None]:
    """Log the seconds of one attempt, also of one that fails."""
    started, finished = time.monotonic(), False
    try:
        yield
        finished = True
    finally:
        row = {
            "round": round_index,
            "stage": stage,
            "seconds": round(time.monotonic() - started, 3),
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
    return dict(costs)
