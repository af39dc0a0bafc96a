"""Takes kernel memory (System V message queues).

how: program
expected: failed
"""

import ctypes

libc = ctypes.CDLL(None, use_errno=True)
if libc.msgget(0, 0o1600) == -1:
    raise OSError(ctypes.get_errno(), "msgget")
