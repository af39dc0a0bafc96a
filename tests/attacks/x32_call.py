"""Calls by the numbers of the x32 interface, to pass a filter of the usual ones.

how: program
expected: failed
"""

import ctypes
import platform

X32, UNSHARE, GETPID = 0x40000000, 272, 39
libc = ctypes.CDLL(None, use_errno=True)
assert platform.machine() == "x86_64"
if libc.syscall(X32 + UNSHARE, 0x10000000) == -1 and libc.syscall(X32 + GETPID) == -1:
    raise OSError(ctypes.get_errno(), "x32")
