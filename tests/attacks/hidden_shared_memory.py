"""Keeps one page of each piece of shared memory mapped, so that the rest counts nowhere.

how: program
expected: crashed
"""

import ctypes
import time

libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
size = 16 << 20
for _ in range(64):
    start = libc.mmap(None, ctypes.c_size_t(size), 3, 0x21, -1, 0)
    ctypes.memset(start, 1, size)
    libc.munmap(ctypes.c_void_p(start + 4096), ctypes.c_size_t(size - 4096))
    time.sleep(0.02)
time.sleep(1)
