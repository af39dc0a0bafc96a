"""Has or takes a capability to write what is not its own.

how: program
expected: failed
"""

import ctypes

libc = ctypes.CDLL(None, use_errno=True)
header, data = (ctypes.c_uint * 2)(0x20080522, 0), (ctypes.c_uint * 6)(*[0xFFFFFFFF] * 6)
if libc.capset(header, data):
    raise OSError(ctypes.get_errno(), "capset")
