"""Takes from the machine's shared budget of asynchronous reads.

how: program
expected: failed
"""

import ctypes
import platform

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(name, *args):
    numbers = {"asynchronous_io": (206, 0)}
    number = numbers[name][platform.machine() == "aarch64"]
    if libc.syscall(number, *args) == -1:
        raise OSError(ctypes.get_errno(), name)


call("asynchronous_io", 1000, (ctypes.c_ulong * 1)())
