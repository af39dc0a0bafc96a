"""What a group of processes uses, read from /proc and from its folder."""

from __future__ import annotations

import contextlib
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path

MIB = 1 << 20
BLOCK_BYTES = 512  # of `st_blocks`, whatever the file system's own
MOST_FILES = 10_000


def children_of(pid: int) -> list[int]:
    """Children of all threads of `pid`; empty when it is gone."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def group_of(pid: int) -> list[int]:
    """`pid` and all below it; orphans belong to a supervisor there, so none is missed."""
    group = [pid]
    for parent in group:  # grows as it goes
        group += children_of(parent)
    return group


def usage_of(group: Sequence[int]) -> tuple[float, float, int]:
    """Processor seconds, resident MiB and number of threads of a group of processes."""
    ticks = pages = threads = 0
    for member in group:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # Fields of proc(5) after the name in brackets: utime to cstime are 11 to 14.
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
            threads += int(fields[17])
            pages += int(fields[21])
    return (
        ticks / os.sysconf("SC_CLK_TCK"),
        pages * os.sysconf("SC_PAGE_SIZE") / MIB,
        threads,
    )


def disk_mib(folder: Path, group: Sequence[int]) -> float:
    """MiB on disk of the files below `folder` and of deleted ones that the group still holds open.

    Infinite for more files than are worth counting and for folders that hide theirs.
    """
    blocks: dict[tuple[int, int], int] = {}
    folders = [str(folder)]
    for path in folders:  # grows as it goes
        try:
            for entry in os.scandir(path):
                about = entry.stat(follow_symlinks=False)
                blocks[about.st_dev, about.st_ino] = about.st_blocks
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                if len(blocks) > MOST_FILES:
                    return math.inf
        except FileNotFoundError:  # removed since
            continue
        except OSError:  # closed to its owner, or its path too long
            return math.inf
    for member in group:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            for name in os.listdir(f"/proc/{member}/fd"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    about = os.stat(f"/proc/{member}/fd/{name}")
                    if stat.S_ISREG(about.st_mode) and about.st_nlink == 0:
                        blocks[about.st_dev, about.st_ino] = about.st_blocks
    return sum(blocks.values()) * BLOCK_BYTES / MIB
