"""Takes an open file from its parent (pidfd_getfd) to forge its exit status.

how: program
expected: failed
"""

import ctypes
import os
import platform

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(name, *args):
    numbers = {"pidfd_getfd": (438, 438)}
    number = numbers[name][platform.machine() == "aarch64"]
    if libc.syscall(number, *args) == -1:
        raise OSError(ctypes.get_errno(), name)


call("pidfd_getfd", os.pidfd_open(os.getppid()), 0, 0)
