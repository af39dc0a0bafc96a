"""Progress on standard error: bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_EVERY_S = 15.0
EARLY_SHARE = 0.1
console = Console(stderr=True, highlight=False, soft_wrap=True)


class Task(Protocol):
    """One long step that is under way."""

    def advance(self, samples: int = 1, tokens: int = 0) -> None:
        """Count finished items, and the tokens that were worked for them."""


@dataclass
class _Bar:
    progress: Progress
    task: TaskID
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    def advance(self, samples: int = 1, tokens: int = 0) -> None:
        self.tokens += tokens
        rate = _rate(self.tokens, self.started)
        self.progress.update(self.task, advance=samples, rate=rate)


@dataclass
class _Lines:
    title: str
    total: int
    unit: str
    done: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    printed: float = field(default_factory=time.monotonic)

    def advance(self, samples: int = 1, tokens: int = 0) -> None:
        self.done += samples
        self.tokens += tokens
        now = time.monotonic()
        if now - self.printed < PLAIN_EVERY_S:
            return
        self.printed = now
        left = (now - self.started) / max(self.done, 1) * (self.total - self.done)
        # The first items of a batch come late: an estimate from them alone is hours off.
        known = self.done >= EARLY_SHARE * self.total
        rate = _rate(self.tokens, self.started)
        say(
            f"  {self.title}: {self.done}/{self.total} {self.unit}{rate}"
            + (f", about {left:.0f} s left" if known else "")
        )


def _rate(tokens: int, started: float) -> str:
    seconds = time.monotonic() - started
    return f", {tokens / seconds:.0f} tokens/s" if tokens and seconds > 0 else ""


@contextmanager
def task(title: str, total: int, unit: str) -> Iterator[Task]:
    """Show one long step while the block runs."""
    if not console.is_terminal:
        yield _Lines(title, total, unit)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}{{task.fields[rate]}}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bar(progress, progress.add_task(title, total=total, rate=""))


def say(text: str) -> None:
    """Print one line to standard error."""
    console.print(text, markup=False)
