"""What a group of processes uses, read from /proc."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def children_of(pid: int) -> list[int]:
    """Children of all threads of `pid`; empty when it is gone."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def usage_of(pid: int) -> tuple[float, float, int]:
    """Processor seconds, resident MiB and number of threads of `pid` and all below it."""
    group = [pid]
    for parent in group:  # grows as it goes; orphans belong to the supervisor, so none is missed
        group += children_of(parent)
    ticks = pages = threads = 0
    for member in group:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # Fields of proc(5) after the name in brackets: utime to cstime are 11 to 14.
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
            threads += int(fields[17])
            pages += int(fields[21])
    megabyte = 1 << 20
    return (
        ticks / os.sysconf("SC_CLK_TCK"),
        pages * os.sysconf("SC_PAGE_SIZE") / megabyte,
        threads,
    )
