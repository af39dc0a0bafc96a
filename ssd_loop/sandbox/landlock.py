"""How a sandbox is started where the machine forbids user namespaces: Landlock, and a narrower call filter.

The driver inside restricts itself before it looks at the program. There is no file system, no network and no
process table of its own: see docs/reliability.md for what that leaves open.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from landlockpy import AccessFS, LandlockError, Ruleset, Scope, abi_version

from ssd_loop.errors import SandboxUnavailableError
from ssd_loop.sandbox.launching import (
    ENVIRONMENT,
    FOLDER_PREFIX,
    LINKS_INTO_USR,
    LOAD_DRIVER,
    READABLE,
    START_PYTHON,
    UNPRIVILEGED_ID,
    Start,
    interpreter,
    is_open,
    renumbered,
)
from ssd_loop.sandbox.syscalls import filters_in_sight

# Versions of the kernel's interface (docs.kernel.org/userspace-api/landlock.html): before the third, files
# that can be read can be emptied; from the sixth on, signals stay inside.
MIN_ABI = 3
SCOPED_ABI = 6
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

READ = AccessFS.EXECUTE | AccessFS.READ_FILE | AccessFS.READ_DIR
OWN = (
    READ | AccessFS.WRITE_FILE | AccessFS.TRUNCATE | AccessFS.REFER
    | AccessFS.REMOVE_DIR | AccessFS.REMOVE_FILE
    | AccessFS.MAKE_DIR | AccessFS.MAKE_REG | AccessFS.MAKE_FIFO | AccessFS.MAKE_SYM
)  # fmt: skip
# The shell leads the process group and stands outside the sandbox. Its own child waits for the end of our
# process, which closes a pipe, and then ends the group, itself included.
SUPERVISE = (
    "/bin/sh",
    "-c",
    'exec 8<&0 9>&2 2>/dev/null <"$1"; shift; { read -r _ <&8; kill -9 0; } 9>&- & '
    'exec 8<&-; "$@" 2>&9 9>&-; exit $?',
    "sh",
)
# The limit on processes counts all of a user's: room for what else the user starts. The supervisor's watch is
# the limit that counts.
ROOM_FOR_OTHERS = 4096


@dataclass(frozen=True)
class Launcher:
    """A way to start a restricted interpreter that suits this machine and user."""

    python: Path
    prefixes: tuple[Path, ...]
    abi: int
    as_root: bool

    isolation = "landlock"

    def start(
        self, opened: contextlib.ExitStack, kept: contextlib.ExitStack, channel_fd: int, stdin_fd: int, _: int
    ) -> Start:
        """How to start one sandbox.

        Args:
            opened: Closes what only the start needs.
            kept: Closes, after the end, what is needed as long as the sandbox runs.
            channel_fd: Over which it gets its job.
            stdin_fd: What the program reads.
        """
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX)).resolve()
        kept.callback(_remove, folder)
        if self.as_root:
            os.chown(folder, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
        ruleset_fd = self._ruleset(folder, opened)
        stdin_fd = renumbered(stdin_fd, opened)
        leash, held = os.pipe()
        opened.callback(os.close, leash)
        kept.callback(os.close, held)
        return Start(
            command=[
                *self._drop_root(folder.parent),
                *(*SUPERVISE, f"/proc/self/fd/{stdin_fd}"),
                *(str(self.python), *START_PYTHON, LOAD_DRIVER, str(channel_fd)),
            ],
            environment={**ENVIRONMENT, "TMPDIR": str(folder)},
            stdin_fd=leash,
            fds=(channel_fd, ruleset_fd, stdin_fd),
            home=str(folder),
            supervisors=3,  # the shell, its own child, and the driver that waits for the program
            restrict={
                "close": stdin_fd,
                "ruleset": ruleset_fd,
                "filters": filters_in_sight(signals_are_scoped=self.abi >= SCOPED_ABI),
            },
            folder=folder,
            other_processes=ROOM_FOR_OTHERS,
        )

    def reason_unavailable(self, complaint: str) -> str:
        """One sentence on why this cannot run here."""
        return f"and Landlock cannot take its place ({complaint[:50]})"

    def _ruleset(self, folder: Path, opened: contextlib.ExitStack) -> int:
        scoped = Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL if self.abi >= SCOPED_ABI else Scope.NONE
        ruleset = opened.enter_context(Ruleset(scoped=scoped))
        system = [Path(name) for name in ("/usr", *LINKS_INTO_USR, *READABLE)]
        for path in (*system, *self.prefixes):
            if path.is_dir():
                ruleset.allow_path(path, READ)
            elif path.exists():
                ruleset.allow_path(path, AccessFS.READ_FILE)
        for device in DEVICES:
            ruleset.allow_path(device, AccessFS.READ_FILE | AccessFS.WRITE_FILE)
        ruleset.allow_path(folder, OWN)
        return renumbered(ruleset.fileno(), opened)

    def _drop_root(self, parent: Path) -> list[str]:
        if not self.as_root:
            return []
        # What lies below a folder that only root can enter is reached by one capability, to read and
        # search; what can be read is up to Landlock.
        hidden = any(not is_open(path) for path in (*self.prefixes, parent))
        kept = ",+dac_read_search" if hidden else ""
        return [
            *("setpriv", f"--reuid={UNPRIVILEGED_ID}", f"--regid={UNPRIVILEGED_ID}", "--clear-groups"),
            *(f"--inh-caps=-all{kept}", f"--ambient-caps=-all{kept}", f"--bounding-set=-all{kept}"),
        ]


def candidates() -> list[Launcher]:
    """The one launcher worth a trial here.

    Raises:
        SandboxUnavailableError: the kernel has no Landlock, or too old a one.
    """
    try:
        abi = abi_version()
    except LandlockError as error:
        raise SandboxUnavailableError(
            f"and this kernel has no Landlock to take its place ({error})"
        ) from error
    if abi < MIN_ABI:
        raise SandboxUnavailableError(
            f"and this kernel's Landlock is of version {abi}, too old to take its place (needed: {MIN_ABI})"
        )
    python, prefixes = interpreter()
    return [Launcher(python, prefixes, abi, os.geteuid() == 0)]


def _remove(folder: Path) -> None:
    """Removes what a program left, however deep and whatever its modes."""
    try:
        folder.rmdir()
    except OSError:
        subprocess.run(["chmod", "-R", "u+rwX", str(folder)], capture_output=True, check=False)
        subprocess.run(["rm", "-rf", "--", str(folder)], capture_output=True, check=False)
