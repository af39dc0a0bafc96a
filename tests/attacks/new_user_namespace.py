"""Becomes root in a user namespace of its own (unshare).

how: program
expected: failed
"""

import ctypes

libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x10000000):
    raise OSError(ctypes.get_errno(), "unshare")
