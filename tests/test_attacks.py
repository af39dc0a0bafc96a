"""Hostile programs, one file each in tests/attacks: each fails or is stopped, and harms nobody.

Every file says what it tries and how it must end. It would pass if it got what it tries. It is told of the
host as `HOST`: ports and sockets that must see no visitor, a file that must not change, processes that must
live.
"""

from __future__ import annotations

import ast
import contextlib
import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ssd_loop import sandbox
from ssd_loop.sandbox import Limits
from ssd_loop.sandbox.processes import group_of

ATTACKS = sorted((Path(__file__).parent / "attacks").glob("*.py"))
LIMITS = Limits(cpu_s=1.0, wall_s=10.0, memory_mib=256, tmp_mib=32, output_kib=64)
SHORT = replace(LIMITS, cpu_s=0.5, wall_s=1.2)  # for those that must be stopped
# What a group can touch between two looks at it, beyond its limit.
SLACK_MIB = 300
# From the last moment a program may use to the end of all of its processes.
SLACK_S = 5.0
# The answer is not in any file that a candidate can read.
HIDDEN_TEST = "def check(candidate):\n    for x in range(3):\n        assert candidate(x) == 91573\n"
HONEST = (
    "import os, threading\nopen('mine', 'w').write('x')\n"
    "worker = threading.Thread(target=print, args=('fine',))\n"
    "worker.start()\nworker.join()\nassert sorted(os.listdir()) == ['main.py', 'mine']\n"
)
SECRET_NAME = "SSD_LOOP_ATTACKED"


@dataclass(frozen=True)
class Host:
    """What attacks are told of, and what is looked at after each."""

    tcp: socket.socket
    udp: socket.socket
    unix: socket.socket
    abstract: socket.socket
    file: Path
    sibling: subprocess.Popen[bytes]

    def told(self) -> dict[str, object]:
        return {
            "port": self.tcp.getsockname()[1],
            "udp_port": self.udp.getsockname()[1],
            "unix": self.unix.getsockname(),
            "abstract": self.abstract.getsockname()[1:].decode(),
            "file": str(self.file),
            "folder": str(self.file.parent),
            "home": str(Path.home()),
            "pid": os.getpid(),
            "sibling": self.sibling.pid,
            "secret_name": SECRET_NAME,
            "left_over": f"left-over-of-{os.getpid()}",
        }

    def harm(self) -> list[str]:
        """What an attack did to the host."""
        found = []
        for name, listening in (("tcp", self.tcp), ("unix", self.unix), ("abstract", self.abstract)):
            with contextlib.suppress(BlockingIOError):
                listening.accept()
                found.append(f"a visitor over {name}")
        with contextlib.suppress(BlockingIOError):
            self.udp.recv(64)
            found.append("a datagram")
        about = self.file.stat()
        if (self.file.read_text(), stat.S_IMODE(about.st_mode), about.st_mtime) != ("secret", 0o600, 1e9):
            found.append("the file changed")
        found += [f"a new {path.name}" for path in self.file.parent.iterdir() if path.name not in KNOWN]
        if self.sibling.poll() is not None or os.getpriority(os.PRIO_PROCESS, self.sibling.pid) == LOWEST:
            found.append("the sibling")
        found += [f"process {line}" for line in command_lines() if str(self.told()["left_over"]) in line]
        return found


KNOWN = {"file", "socket"}
LOWEST = 19  # the priority that an attack tries to give


def command_lines() -> Iterator[str]:
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield Path(f"/proc/{entry}/cmdline").read_text(errors="replace")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("host")
    folder.chmod(0o755)
    file = folder / "file"
    file.write_text("secret")
    file.chmod(0o600)
    os.utime(file, (1e9, 1e9))
    os.environ[SECRET_NAME] = "secret"
    with contextlib.ExitStack() as opened:
        opened.callback(os.environ.pop, SECRET_NAME)
        tcp = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        unix, abstract = (opened.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        unix.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o777)
        abstract.bind(f"\0ssd-loop-attacked-{os.getpid()}")
        for listening in (unix, abstract):
            listening.listen()
        for one in (tcp, udp, unix, abstract):
            one.setblocking(False)
        sibling = opened.enter_context(subprocess.Popen(["sleep", "1000"], start_new_session=True))
        opened.callback(sibling.kill)
        yield Host(tcp, udp, unix, abstract, file, sibling)


@pytest.mark.parametrize("path", ATTACKS, ids=lambda path: path.stem)
def test_an_attack_fails_and_harms_nobody(path: Path, backend: str, host: Host) -> None:
    what = ast.get_docstring(ast.parse(path.read_text())) or ""
    about = dict(line.split(": ", 1) for line in what.rpartition("\n\n")[2].splitlines())
    source = f"HOST = {host.told()!r}\n{path.read_text()}"
    limits = SHORT if "timeout" in about["expected"] else LIMITS
    began = time.monotonic()
    with most_memory() as peak_mib, ThreadPoolExecutor() as pool:
        if about["how"] == "check":
            attacked = pool.submit(sandbox.run_check, source, "f", "", HIDDEN_TEST, limits)
        else:
            attacked = pool.submit(sandbox.run_program, source, limits=limits)
        neighbour = pool.submit(sandbox.run_program, HONEST, limits=Limits())
        result = attacked.result()
        assert time.monotonic() - began < limits.wall_s + SLACK_S
        assert neighbour.result().stdout == "fine\n", neighbour.result()
    assert result.isolation == backend
    assert result.outcome in about["expected"].split(" or "), result
    assert host.harm() == []
    assert "secret" not in result.stdout
    assert peak_mib[0] < limits.memory_mib + SLACK_MIB


@contextlib.contextmanager
def most_memory() -> Iterator[list[float]]:
    """The most memory of all that is below this process, MiB, in a list whose only item it is.

    Pages that processes share are counted once, as after a fork.
    """
    ended, peak_mib = threading.Event(), [0.0]

    def watch() -> None:
        while not ended.wait(0.05):
            below = group_of(os.getpid())[1:]
            peak_mib[0] = max(peak_mib[0], sum(map(proportional_mib, below)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak_mib
    finally:
        ended.set()
        watcher.join()


def proportional_mib(pid: int) -> float:
    """Memory of a process, MiB; none of one that is being started, which still has ours."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        if Path(f"/proc/{pid}/cmdline").read_bytes() == Path("/proc/self/cmdline").read_bytes():
            return 0.0
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return 0.0


def test_there_are_many_attacks_and_none_expects_to_pass() -> None:
    assert len(ATTACKS) >= 40
    for path in ATTACKS:
        what = ast.get_docstring(ast.parse(path.read_text()))
        assert what is not None
        assert "\n\nhow: " in what
        assert "passed" not in what.rpartition("expected: ")[2]
