"""What callers use: one program, one shell command, calls of one function, one hidden test."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from ssd_loop.errors import ConfigError, SandboxUnavailableError
from ssd_loop.sandbox import bubblewrap, landlock
from ssd_loop.sandbox.inside import decode, text_of
from ssd_loop.sandbox.plain import Foreign, Missing, Raised, Return, Returned
from ssd_loop.sandbox.supervise import BATCH, Batch, Child, Launcher, Limits, watch

Outcome = Literal["passed", "failed", "timeout", "crashed"]
Status = Literal["ok", "timeout", "crashed"]
R = TypeVar("R")

SIGNAL_STATUS = 128  # exit status of a program killed by signal n is 128 + n, as in a shell
KILLED_BY_CPU_LIMIT = SIGNAL_STATUS + 24  # SIGXCPU on every Linux that bubblewrap runs on
DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class ProgramResult:
    """How one program ended. `exit_code` is None if it was stopped, `seconds` is wall time."""

    outcome: Outcome
    stdout: str
    stderr: str
    exit_code: int | None
    seconds: float
    isolation: str = "bubblewrap"


@dataclass(frozen=True)
class CallsResult:
    """What each call gave, in order; `Missing` from the call on that was not answered."""

    status: Status
    returns: tuple[Return, ...]


def isolation() -> str:
    """Returns "bubblewrap" or "landlock" after a trial run (once per process).

    Raises:
        SandboxUnavailableError: neither can run here; says what to run to allow it.
    """
    return _launcher()[0].isolation


def why_not_bubblewrap() -> str:
    """Returns one sentence on why bubblewrap does not run here and how to allow it; empty where it does."""
    return _launcher()[1]


def run_program(source: str | bytes, *, stdin: str = "", limits: Limits = DEFAULT_LIMITS) -> ProgramResult:
    """Returns how one Python program ended.

    "passed": ran to its end, threads and exit handlers included, with status 0. A call of
    `sys.exit(0)`, even as the last statement, is an early exit and counts as "crashed".
    """
    child = _run({"mode": "program", "source": _bytes(source)}, limits, _bytes(stdin))
    return _result(_judge(child), child)


def run_shell(command: str, *, files: Mapping[str, str], limits: Limits = DEFAULT_LIMITS) -> ProgramResult:
    """Returns how `/bin/sh -c command` ended in a folder that holds `files`."""
    contents = {name: _bytes(content) for name, content in files.items()}
    child = _run({"mode": "shell", "command": command, "files": contents}, limits)
    return _result(_judge(child, needs_end_mark=False), child)


def call_function(
    source: str, entry_point: str, calls: Sequence[str], limits: Limits = DEFAULT_LIMITS
) -> CallsResult:
    """Returns what each call gave: the source is loaded once, arguments are fresh in each call.

    Args:
        calls: source texts such as `"f([1, 2], 'x')"`.
    """
    job = {"mode": "calls", "source": _bytes(source), "entry_point": entry_point}
    child = _run({**job, "calls": list(calls)}, limits)
    outcome = _judge(child)
    answers = [m for m in child.messages if m[0] in ("value", "raised")][: len(calls)]
    try:
        returns = [_return_of(answer) for answer in answers]
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError):
        return CallsResult("crashed", (Missing(),) * len(calls))  # not written by our driver
    missing = len(calls) - len(returns)
    complete: Status = "ok" if outcome == "passed" and not missing else "crashed"
    status: Status = "timeout" if outcome == "timeout" else complete
    return CallsResult(status, (*returns, *[Missing()] * missing))


def run_check(
    source: str, entry_point: str, preamble: str, test: str, limits: Limits = DEFAULT_LIMITS
) -> ProgramResult:
    """Returns how a hidden test ended on a program.

    Test and program run in a sandbox each. The test's `check(candidate)` gets a stand-in that sends
    arguments to the program and brings back plain data or an exception of the same built-in class,
    so neither an object that equals everything nor an early exit nor a patched checker passes.
    A change the program makes to an argument is not seen by the test.

    Args:
        preamble: imports and helper functions that the test needs; see `ssd_loop.problems.preamble_of`.
        test: defines `check(candidate)`.
    """
    served = {"mode": "serve", "source": _bytes(source), "entry_point": entry_point}
    testing = {"mode": "test", "entry_point": entry_point, "preamble": _bytes(preamble)}
    launcher, _ = _launcher()
    with (
        Child(launcher, served, limits) as program,
        Child(launcher, {**testing, "test": _bytes(test)}, limits) as tester,
    ):

        def pass_on(sender: Child, message: list[Any]) -> None:
            if sender is tester and message[0] == "call":
                program.send(message[1])
            if sender is program and message[0] in ("value", "raised"):
                tester.send(message)

        watch([program, tester], pass_on)
    _require_start(program)
    _require_start(tester)
    # Whoever was not stopped because the other one ended knows what happened.
    child = program if tester.stopped == "over" else tester
    outcome = _judge(child)
    if child is program and outcome == "passed":
        outcome = "crashed"  # it has no end of its own: it serves until the test is done
    return ProgramResult(
        outcome,
        _text(program.output["stdout"]),
        _text(program.output["stderr"] + tester.output["stderr"]),
        _exit_code(child),
        max(program.seconds, tester.seconds),
        launcher.isolation,
    )


def run_file(path: Path, limits: Limits = DEFAULT_LIMITS) -> dict[str, Any]:
    """Returns how the Python file at `path` ended, ready for one line of strict JSON."""
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r} ({error.strerror}): name a Python file") from error
    result = run_program(source, limits=limits)
    return {
        "outcome": result.outcome,
        "isolation": result.isolation,
        "seconds": round(result.seconds, 3),
        "exit_code": result.exit_code,
        "stdout": result.stdout,
        "stderr": result.stderr,
    }


def run_all(
    jobs: Sequence[Callable[[], R]], *, workers: int, on_done: Callable[[], object] | None = None
) -> list[R]:
    """Returns the jobs' results in their order.

    A job in which any sandbox timed out runs once more, alone, at the end, and the second result
    counts: a busy machine does not change results.

    Args:
        jobs: callables that use the functions of this module, and may combine their results.
        on_done: called in this thread after each job.
    """
    results: dict[int, R] = {}
    again: list[int] = []
    cancelled = threading.Event()

    def run(index: int) -> tuple[R, bool]:
        batch = Batch(cancelled)
        context = contextvars.copy_context()
        context.run(BATCH.set, batch)
        return context.run(jobs[index]), batch.timed_out

    def keep(index: int, result: R) -> None:
        results[index] = result
        if on_done is not None:
            on_done()

    with ThreadPoolExecutor(workers, thread_name_prefix="sandbox") as pool:
        futures = {pool.submit(run, index): index for index in range(len(jobs))}
        try:
            for future in as_completed(futures):
                result, timed_out = future.result()
                if timed_out:
                    again.append(futures[future])
                else:
                    keep(futures[future], result)
        except BaseException:  # an interrupt as well: stop what runs, start nothing more
            cancelled.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for index in sorted(again):
        keep(index, jobs[index]())
    return [results[index] for index in range(len(jobs))]


def _run(job: dict[str, Any], limits: Limits, stdin: bytes = b"") -> Child:
    with Child(_launcher()[0], job, limits, stdin) as child:
        watch([child], lambda _child, _message: None)
    _require_start(child)
    return child


def _judge(child: Child, *, needs_end_mark: bool = True) -> Outcome:
    """The outcome of an ended program, from what stopped it, what it told and how it exited."""
    if child.stopped == "timeout" or child.process.returncode == KILLED_BY_CPU_LIMIT:
        return "timeout"
    if child.stopped is not None:
        return "crashed"
    told = {message[0]: message[1:] for message in child.messages}
    status = child.process.returncode
    if status == 0 and (not needs_end_mark or told.get("end") == [child.token]):
        return "passed"
    if _class_name(told.get("uncaught", [])) == "MemoryError":
        return "crashed"
    return "failed" if 0 < status < SIGNAL_STATUS else "crashed"


def _return_of(answer: list[Any]) -> Return:
    if answer[0] == "raised":
        return Raised(text_of(answer[1]))
    value = decode(answer[1], Foreign)
    return value if isinstance(value, Foreign) else Returned(value)


def _class_name(body: list[Any]) -> str:
    with contextlib.suppress(ValueError, TypeError, IndexError):
        return text_of(body[0])
    return ""


def _result(outcome: Outcome, child: Child) -> ProgramResult:
    stdout, stderr = _text(child.output["stdout"]), _text(child.output["stderr"])
    return ProgramResult(outcome, stdout, stderr, _exit_code(child), child.seconds, child.launcher.isolation)


def _exit_code(child: Child) -> int | None:
    return None if child.stopped else child.process.returncode


def _require_start(child: Child) -> None:
    if child.stopped is None and not child.messages:
        lines = _text(child.output["stderr"]).strip().splitlines() or ["no message"]
        raise SandboxUnavailableError(child.launcher.reason_unavailable(lines[-1]))


@functools.cache
def _launcher() -> tuple[Launcher, str]:
    """A launcher that works here, and why it is not bubblewrap's."""
    try:
        return _first_to_start(bubblewrap.candidates()), ""
    except SandboxUnavailableError as error:
        why = str(error)
    try:
        return _first_to_start(landlock.candidates()), why
    except SandboxUnavailableError as error:
        raise SandboxUnavailableError(f"{why}; {error}; or set sandbox.execute to false") from error


def _first_to_start(candidates: Sequence[Launcher]) -> Launcher:
    trial: dict[str, Any] = {"mode": "program", "source": b""}
    complaint: SandboxUnavailableError | None = None
    for launcher in candidates:
        try:
            with Child(launcher, trial, DEFAULT_LIMITS) as child:
                watch([child], lambda _child, _message: None)
            _require_start(child)
        except OSError as error:  # a tool is missing, or the mount points cannot be made
            complaint = complaint or SandboxUnavailableError(launcher.reason_unavailable(str(error)))
        except SandboxUnavailableError as error:
            complaint = complaint or error
        else:
            return launcher
    assert complaint is not None
    raise complaint


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def _text(data: bytes | bytearray) -> str:
    return data.decode("utf-8", "replace")
