"""Keeps its memory from being swapped, all that will ever be.

how: program
expected: failed
"""

import ctypes

libc = ctypes.CDLL(None, use_errno=True)
kept = bytearray(64 << 20)
if libc.mlockall(3):
    raise OSError(ctypes.get_errno(), "mlockall")
