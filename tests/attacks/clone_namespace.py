"""Becomes root in a user namespace of its own (clone, then clone3).

how: program
expected: failed
"""

import ctypes
import os
import platform

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(name, *args):
    numbers = {"clone": (56, 220), "clone3": (435, 435)}
    number = numbers[name][platform.machine() == "aarch64"]
    if libc.syscall(number, *args) == -1:
        raise OSError(ctypes.get_errno(), name)


SIGCHLD, CLONE_NEWUSER = 17, 0x10000000
child = libc.syscall(56 if platform.machine() != "aarch64" else 220, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0)
if child == 0:
    os._exit(0)
if child == -1:
    call("clone3", (ctypes.c_ulonglong * 11)(CLONE_NEWUSER, 0, 0, 0, SIGCHLD), 88)
