"""Runs code that nobody trusts: under bubblewrap, where that cannot start under Landlock, or not at all.

No network, no home, an empty environment, a read-only system, a temporary folder of bounded size, a filter
of system calls, and limits on memory, processor time, processes, files and output that hold for the whole
group of processes. Results come back as plain data, so what a program returns cannot pretend to be right.
"""

from ssd_loop.sandbox.plain import Foreign, Missing, Raised, Return, Returned, canonical, same
from ssd_loop.sandbox.runs import (
    CallsResult,
    ProgramResult,
    call_function,
    isolation,
    run_all,
    run_check,
    run_file,
    run_program,
    run_shell,
    why_not_bubblewrap,
)
from ssd_loop.sandbox.supervise import Limits

__all__ = [
    "CallsResult",
    "Foreign",
    "Limits",
    "Missing",
    "ProgramResult",
    "Raised",
    "Return",
    "Returned",
    "call_function",
    "canonical",
    "isolation",
    "run_all",
    "run_check",
    "run_file",
    "run_program",
    "run_shell",
    "same",
    "why_not_bubblewrap",
]
