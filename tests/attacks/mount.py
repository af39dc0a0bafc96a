"""Mounts a file system, by the old and the new calls.

how: program
expected: failed
"""

import ctypes
import platform

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(name, *args):
    numbers = {"mount": (165, 40), "fsopen": (430, 430), "open_tree": (428, 428)}
    number = numbers[name][platform.machine() == "aarch64"]
    if libc.syscall(number, *args) == -1:
        raise OSError(ctypes.get_errno(), name)


try:
    call("mount", b"x", b"/tmp", b"tmpfs", 0, None)
except OSError:
    try:
        call("fsopen", b"tmpfs", 0)
    except OSError:
        call("open_tree", -100, b"/", 1)
