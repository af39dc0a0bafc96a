"""Splits its address space into all the pieces it can have, in many processes.

how: program
expected: crashed or timeout
"""

import mmap
import os
import time

for _ in range(28):
    if os.fork() == 0:
        kept = []
        try:
            while True:
                writable = mmap.PROT_WRITE if len(kept) % 2 else 0
                kept.append(mmap.mmap(-1, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | writable))
        except (OSError, MemoryError):
            pass
        time.sleep(3)
        os._exit(0)
time.sleep(3)
