"""What a group of processes uses, read from /proc and from its folder."""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssd_loop.sandbox.launching import FOLDER_PREFIX

MIB = 1 << 20
BLOCK_BYTES = 512  # of `st_blocks`, whatever the file system's own
MAPPING_BYTES = 128  # of a line in /proc/PID/maps, or more
MOST_FILES = 20_000
MOST_SOCKETS = 64
MOST_MAPPINGS = 1 << 16
MOST_PIECES = 8
# In /proc/PID/maps: device and number of shared memory, and of a deleted file in a program's folder.
_PIECE = re.compile(
    rb"^\S+ \S+ \S+ (\S+ \d+) +(?:/dev/zero|/.*/%b.*) \(deleted\)$" % FOLDER_PREFIX.encode(),
    re.MULTILINE,
)


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


@dataclass(frozen=True)
class Hidden:
    """What a group holds without its being resident in any of its processes.

    Attributes:
        files: On the sandbox's own file systems; each takes about 1 KiB of the kernel, empty ones as well.
        sockets: Up to some MiB each, also those that no process has open any more.
        mappings: Pieces of address space; each takes some 100 bytes of the kernel.
        pieces: Shared memory and deleted files; one stays whole while a page of it is mapped.
    """

    files: int
    sockets: int
    mappings: int
    pieces: int

    @property
    def is_too_much(self) -> bool:
        """Whether this is more than programs need: some 100 MiB of each, with what the filter allows."""
        return (
            self.files > MOST_FILES
            or self.sockets > MOST_SOCKETS
            or self.mappings > MOST_MAPPINGS
            or self.pieces > MOST_PIECES
        )


def hidden_in(programs: Sequence[int], namespaces_of: int | None) -> Hidden:
    """What processes hold without its being resident in them.

    Args:
        namespaces_of: A process in their own file systems and network; None where they have none.

    Raises:
        PermissionError: a process hides what it has.
    """
    mappings, pieces = 0, set()
    for member in programs:
        with _while_it_lives(member):
            with open(f"/proc/{member}/maps", "rb") as file:
                lines = file.read(MOST_MAPPINGS * MAPPING_BYTES)
            mappings += lines.count(b"\n")
            pieces.update(_PIECE.findall(lines))
        if mappings > MOST_MAPPINGS:
            break
    files = sockets = 0
    if namespaces_of is None:
        sockets = len({about.st_ino for about in open_files(programs) if stat.S_ISSOCK(about.st_mode)})
    else:
        inside = f"/proc/{namespaces_of}"
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # gone
            for folder in ("tmp", "dev/shm"):
                about = os.statvfs(f"{inside}/root/{folder}")
                files += about.f_files - about.f_ffree
            first, _, _ = Path(f"{inside}/net/sockstat").read_text().partition("\n")
            sockets = int(first.split()[-1])  # "sockets: used N"
    return Hidden(files, sockets, mappings, len(pieces))


def open_files(programs: Sequence[int]) -> Iterator[os.stat_result]:
    """What processes have open, each as often as it is.

    Raises:
        PermissionError: a process hides what it has open.
    """
    for member in programs:
        with _while_it_lives(member):
            for name in os.listdir(f"/proc/{member}/fd"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    yield os.stat(f"/proc/{member}/fd/{name}")


@contextlib.contextmanager
def _while_it_lives(pid: int) -> Iterator[None]:
    """Passes over what a process that ends no longer shows.

    Raises:
        PermissionError: it has memory still, and hides what it has.
    """
    try:
        yield
    except (FileNotFoundError, ProcessLookupError):
        pass
    except PermissionError:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if not Path(f"/proc/{pid}/statm").read_text().startswith("0 "):
                raise


def disk_mib(folder: Path, programs: Sequence[int]) -> float:
    """MiB on disk of the files below `folder` and of deleted ones that processes still hold open.

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
    for about in open_files(programs):
        if stat.S_ISREG(about.st_mode) and about.st_nlink == 0:
            blocks[about.st_dev, about.st_ino] = about.st_blocks
    return sum(blocks.values()) * BLOCK_BYTES / MIB
