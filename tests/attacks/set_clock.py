"""Sets the machine's clock.

how: program
expected: failed
"""

import ctypes
import platform

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(name, *args):
    numbers = {"set_clock": (227, 112)}
    number = numbers[name][platform.machine() == "aarch64"]
    if libc.syscall(number, *args) == -1:
        raise OSError(ctypes.get_errno(), name)


call("set_clock", 0, (ctypes.c_long * 2)(1, 0))
