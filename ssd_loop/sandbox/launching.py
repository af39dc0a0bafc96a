"""What both ways of starting a sandbox share: the interpreter, its environment, how the driver is loaded."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNPRIVILEGED_ID = 65534
FOLDER_PREFIX = "ssd_loop-"  # of a program's folder, where it lies on the machine's own file system
FIRST_FREE_FD = 10  # the shells that supervise redirect by number, and have one digit for it
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "PYTHONHASHSEED": "0",
    "TZ": "UTC",
    "LC_ALL": "C.UTF-8",
}
# Folders and links of the system, besides /usr, that a program can read.
LINKS_INTO_USR = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")
READABLE = ("/etc/alternatives", "/etc/ld.so.cache", "/nix/store")

# Python's options: no site (a third of the start-up time), no user folder, no folder of the script,
# no bytecode. `-E` and `-I` would switch off PYTHONHASHSEED; the environment is ours anyway.
START_PYTHON = ("-S", "-s", "-P", "-B", "-c")
LOAD_DRIVER = """
import marshal, os, sys
fd = int(sys.argv[1])
size, data = int.from_bytes(os.read(fd, 4), 'big'), b''
while len(data) < size:
    data += os.read(fd, size - len(data))
code, job = marshal.loads(data)
del data
inside = {'__name__': 'inside'}
exec(code, inside)
inside['main'](job, fd)
"""

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


@dataclass(frozen=True)
class Start:
    """How one sandbox is started.

    Attributes:
        command: The whole command line.
        environment: Of the started process.
        stdin_fd: Its standard input, which need not be the program's.
        fds: Further open files that it inherits.
        home: The folder in which the program runs, as the program sees it.
        supervisors: Processes that are ours and come first in the group; what ran before them became them.
        restrict: What the driver inside still has to do to itself before it runs the program.
        folder: `home` on this machine, where that is no file system of the sandbox's own. Then there are no
            process numbers of its own either, and the process group is all there is to stop.
        other_processes: Those of the same user that count against the program's limit.
    """

    command: list[str]
    environment: Mapping[str, str]
    stdin_fd: int
    fds: tuple[int, ...]
    home: str
    supervisors: int
    restrict: dict[str, Any] | None = None
    folder: Path | None = None
    other_processes: int = 0


def interpreter() -> tuple[Path, tuple[Path, ...]]:
    """The Python to run programs with, and the folders it needs besides /usr."""
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    prefixes = dict.fromkeys((python.parent.parent, Path(sys.base_prefix).resolve()))
    return python, tuple(path for path in prefixes if not path.is_relative_to("/usr"))


def is_open(path: Path) -> bool:
    """Whether an unprivileged user reaches `path`."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


def sealed_file(content: bytes, opened: contextlib.ExitStack) -> int:
    """A file without a name that holds `content` and that nobody can change or grow; closed with `opened`."""
    fd = os.memfd_create("ssd_loop", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    opened.callback(os.close, fd)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def renumbered(fd: int, opened: contextlib.ExitStack) -> int:
    """A copy of `fd` whose number the shells that supervise do not use; closed with `opened`."""
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_FD)
    opened.callback(os.close, copy)
    return copy
