"""Handles its own page faults, to freeze the kernel in the middle of a call.

how: program
expected: failed
"""

import ctypes
import platform

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(name, *args):
    numbers = {"userfaultfd": (323, 282)}
    number = numbers[name][platform.machine() == "aarch64"]
    if libc.syscall(number, *args) == -1:
        raise OSError(ctypes.get_errno(), name)


call("userfaultfd", 1)
