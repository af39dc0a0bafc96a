"""Counts what the processor does.

how: program
expected: failed
"""

import ctypes
import platform

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(name, *args):
    numbers = {"perf_events": (298, 241)}
    number = numbers[name][platform.machine() == "aarch64"]
    if libc.syscall(number, *args) == -1:
        raise OSError(ctypes.get_errno(), name)


call("perf_events", (ctypes.c_uint * 32)(1, 128), 0, -1, -1, 0)
