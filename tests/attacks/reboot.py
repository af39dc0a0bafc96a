"""Ends the machine's chance to be restarted by its keyboard.

how: program
expected: failed
"""

import ctypes
import platform

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(name, *args):
    numbers = {"reboot": (169, 142)}
    number = numbers[name][platform.machine() == "aarch64"]
    if libc.syscall(number, *args) == -1:
        raise OSError(ctypes.get_errno(), name)


call("reboot", 0xFEE1DEAD, 672274793, 0, None)
