"""Takes memory that outlives its process (System V segments).

how: program
expected: failed
"""

import ctypes

libc = ctypes.CDLL(None, use_errno=True)
if libc.shmget(0, 64 << 20, 0o1600) == -1:
    raise OSError(ctypes.get_errno(), "shmget")
