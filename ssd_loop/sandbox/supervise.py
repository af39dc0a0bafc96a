"""Watches sandboxes from outside: bounded reads, limits on the whole group, nothing left behind."""

from __future__ import annotations

import contextlib
import functools
import json
import marshal
import math
import os
import secrets
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from ssd_loop.sandbox import bubblewrap, landlock
from ssd_loop.sandbox.launching import renumbered, sealed_file
from ssd_loop.sandbox.processes import children_of, disk_mib, group_of, hidden_in, usage_of

Stop = Literal["timeout", "memory", "processes", "output", "protocol", "over"]
Launcher = bubblewrap.Launcher | landlock.Launcher

TICK_S = 0.05  # between two looks at a group; what a hog can touch in between is under 200 MiB
GRACE_S = 2.0  # from killing what runs inside to killing bubblewrap itself
CHUNK_BYTES = 1 << 16
MESSAGES_KIB = 1024  # results of one program
OPEN_FILES = 64


@dataclass(frozen=True)
class Limits:
    """What one sandboxed program may use. Processor time decides; wall time is a backstop."""

    cpu_s: float = 4.0
    wall_s: float = 20.0
    memory_mib: int = 512
    processes: int = 32
    file_mib: int = 16
    tmp_mib: int = 64
    output_kib: int = 256


@dataclass
class Batch:
    """What a job of a batch shares with the code that runs it."""

    cancelled: threading.Event
    timed_out: bool = False


# A context variable, since jobs are opaque: they take no argument and return what they like.
BATCH: ContextVar[Batch | None] = ContextVar("BATCH", default=None)


class Child:
    """One running sandbox: its pipes, its messages and why it was stopped."""

    def __init__(self, launcher: Launcher, job: dict[str, Any], limits: Limits, stdin: bytes = b"") -> None:
        self.launcher = launcher
        self.limits = limits
        self.token = secrets.token_hex(16)
        self.messages: list[list[Any]] = []
        self.stopped: Stop | None = None
        self.running = True
        self.seconds = 0.0
        self.output = {"stdout": bytearray(), "stderr": bytearray(), "messages": bytearray()}
        self._pending = bytearray()  # to be sent
        self._taken = 0  # bytes of messages already parsed
        self._started = self._looked = time.monotonic()
        self._stopped_at = 0.0
        with contextlib.ExitStack() as opened, contextlib.ExitStack() as kept:
            self._channel, theirs = map(opened.enter_context, socket.socketpair())
            channel_fd = renumbered(theirs.fileno(), opened)
            stdin_fd = sealed_file(stdin, opened) if stdin else _nothing(opened)
            start = launcher.start(opened, kept, channel_fd, stdin_fd, limits.tmp_mib)
            self.process = subprocess.Popen(
                start.command,
                stdin=start.stdin_fd,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=start.folder or "/",
                env=start.environment,
                pass_fds=start.fds,
                start_new_session=True,
            )
            self._channel = self._channel.dup()
            self._kept = kept.pop_all()
        self._folder = start.folder
        self._supervisors = start.supervisors
        rlimits = _rlimits(limits, start.other_processes)
        about = {"token": self.token, "home": start.home, "restrict": start.restrict, "limits": rlimits}
        self.send((_code(), {**job, **about}))
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._pidfd = os.pidfd_open(self.process.pid)
        self._streams = {
            self.process.stdout.fileno(): "stdout",
            self.process.stderr.fileno(): "stderr",
            self._channel.fileno(): "messages",
        }
        for fd in self._streams:
            os.set_blocking(fd, False)

    def send(self, message: Any) -> None:
        """Queues a message for the program inside."""
        body = marshal.dumps(message)
        self._pending += len(body).to_bytes(4, "big") + body

    def stop(self, reason: Stop) -> None:
        """Kills everything inside; the first reason counts."""
        if self.stopped is None:
            self.stopped = reason
            self._stopped_at = time.monotonic()
        if self._folder is not None:
            self._kill_group()
            return
        # The supervisor inside goes first: the kernel kills the rest with it, and bubblewrap, its
        # parent, reaps it, so no zombie is left to a container without an init process.
        inside = children_of(self.process.pid)
        if not inside or time.monotonic() - self._stopped_at > GRACE_S:
            self._kill_group()
        for pid in inside:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Leaves no process and no file descriptor behind."""
        while self.process.poll() is None:
            self.stop("over")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(TICK_S)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        self._channel.close()
        os.close(self._pidfd)
        self._kept.close()  # which ends what is left of a group whose leader is gone
        if self.running:
            self.running = False
            self._reap()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def register(self, selector: selectors.BaseSelector) -> None:
        """Asks `selector` for everything this child can report."""
        selector.register(self._pidfd, selectors.EVENT_READ, (self, None))
        for fd, name in self._streams.items():
            selector.register(fd, selectors.EVENT_READ, (self, name))

    def handle(self, selector: selectors.BaseSelector, fd: int, stream: str | None) -> None:
        """Takes what became readable on `fd`; the end of the process when `stream` is None."""
        if stream is not None:
            if self._read(fd, stream) == "closed":
                selector.unregister(fd)
            return
        if self._folder is not None:
            self._kill_group()  # before its leader is reaped, whose number is the group's
        self.process.wait()
        self._reap()
        self.seconds = time.monotonic() - self._started
        self.running = False
        for fd, name in self._streams.items():  # what is there, never until end of file
            while self._read(fd, name) == "some":
                pass
            with contextlib.suppress(KeyError):
                selector.unregister(fd)
        selector.unregister(self._pidfd)

    def flush(self, selector: selectors.BaseSelector) -> None:
        """Sends what the socket takes of the queue; asks `selector` to say when it takes more."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self._pending:
                del self._pending[: self._channel.send(self._pending)]
        key = selector.get_map().get(self._channel)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._pending else 0)
        if key is not None and key.events != events:
            selector.modify(self._channel, events, key.data)

    def enforce(self) -> None:
        """Stops the child when its group went over a limit."""
        now = time.monotonic()
        if now - self._looked < TICK_S:
            return
        self._looked = now
        if self.stopped is not None:
            self.stop(self.stopped)
        elif now - self._started > self.limits.wall_s:
            self.stop("timeout")
        else:
            group = group_of(self.process.pid)
            cpu_s, memory_mib, processes = usage_of(group)
            if cpu_s > self.limits.cpu_s:
                self.stop("timeout")
            elif memory_mib > self.limits.memory_mib:
                self.stop("memory")
            elif processes > self.limits.processes + self._supervisors:
                self.stop("processes")
            elif self._hides_too_much(group):
                self.stop("memory")

    @property
    def new_messages(self) -> list[list[Any]]:
        """Messages that arrived since the last look; malformed ones stop the child."""
        buffer = self.output["messages"]
        end = buffer.rfind(b"\n") + 1
        lines = bytes(buffer[self._taken : end]).splitlines()
        self._taken = max(self._taken, end)
        try:
            fresh = [json.loads(line) for line in lines]
            _require_lists(fresh)
        except (ValueError, RecursionError):  # not written by our driver
            self.stop("protocol")
            return []
        self.messages += fresh
        return fresh

    def _hides_too_much(self, group: Sequence[int]) -> bool:
        if not self.messages:  # not set up yet: what is seen are the machine's own files and sockets
            return False
        programs = group[self._supervisors :]
        try:
            if self._folder is None:
                # All that bubblewrap's child has is the sandbox's own.
                return len(group) > 1 and hidden_in(programs, group[1]).is_too_much
            if hidden_in(programs, None).is_too_much:
                return True
            return disk_mib(self._folder, programs) > self.limits.tmp_mib
        except PermissionError:  # a process closed itself to us, who are of the same user
            return True

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _reap(self) -> None:
        """Waits for the rest of a killed group where its orphans are ours: as a container's first process."""
        with contextlib.suppress(ChildProcessError):
            while self._folder is not None:
                os.waitpid(-self.process.pid, 0)

    def _read(self, fd: int, stream: str) -> Literal["some", "none", "closed"]:
        try:
            data = os.read(fd, CHUNK_BYTES)
        except BlockingIOError:
            return "none"
        except ConnectionResetError:  # ended with something unread
            return "closed"
        buffer = self.output[stream]
        bound = (MESSAGES_KIB if stream == "messages" else self.limits.output_kib) << 10
        buffer += data[: bound - len(buffer)]
        if data and len(buffer) == bound:
            self.stop("output")
            return "none"
        return "some" if data else "closed"


def watch(children: Sequence[Child], on_message: Callable[[Child, list[Any]], None]) -> None:
    """Returns when the first child ended and all others were stopped."""
    batch = BATCH.get()
    with selectors.DefaultSelector() as selector:
        for child in children:
            child.register(selector)
        while any(child.running for child in children):
            for child in children:
                if child.running:
                    child.flush(selector)
            for key, _ in selector.select(TICK_S):
                if key.fd in selector.get_map():  # may have gone with the end of its process
                    child, stream = key.data
                    child.handle(selector, key.fd, stream)
            if batch is not None and batch.cancelled.is_set():
                raise CancelledError
            for child in children:
                for message in child.new_messages:
                    on_message(child, message)
            for child in children:
                if child.running:
                    child.enforce()
            if not all(child.running for child in children):
                for child in children:
                    if child.running and child.stopped is None:
                        child.stop("over")
    if batch is not None and any(child.stopped == "timeout" for child in children):
        batch.timed_out = True


def _require_lists(messages: Sequence[object]) -> None:
    """Raises ValueError unless every message is a list that starts with text."""
    for message in messages:
        if not (isinstance(message, list) and message and isinstance(message[0], str)):
            raise ValueError(f"not a message: {message!r:.80}")


@functools.cache
def _code() -> Any:
    path = Path(__file__).with_name("inside.py")
    return compile(path.read_bytes(), "<sandbox>", "exec", dont_inherit=True, optimize=2)


def _nothing(opened: contextlib.ExitStack) -> int:
    fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    opened.callback(os.close, fd)
    return fd


def _rlimits(limits: Limits, other_processes: int) -> dict[str, int]:
    """Limits of a single process, set inside; those of the group are watched from outside."""
    return {
        "RLIMIT_CPU": math.ceil(limits.cpu_s) + 1,
        "RLIMIT_AS": limits.memory_mib << 20,
        "RLIMIT_NPROC": limits.processes + other_processes,
        "RLIMIT_FSIZE": limits.file_mib << 20,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_CORE": 0,
    }
