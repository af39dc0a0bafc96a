"""Opens a file by its handle, past every mount (open_by_handle_at).

how: program
expected: failed
"""

import ctypes
import os
import platform

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(name, *args):
    numbers = {"name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265)}
    number = numbers[name][platform.machine() == "aarch64"]
    if libc.syscall(number, *args) == -1:
        raise OSError(ctypes.get_errno(), name)


handle = (ctypes.c_uint * 34)(128, 0)
mount = ctypes.c_int()
call("name_to_handle_at", -100, b"/usr", ctypes.byref(handle), ctypes.byref(mount), 0)
call("open_by_handle_at", os.open("/usr", os.O_RDONLY), ctypes.byref(handle), os.O_RDONLY)
