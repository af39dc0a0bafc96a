"""Closes itself to whoever counts its open files, then fills the disk with deleted ones.

how: program
expected: crashed or timeout or failed
"""

import ctypes
import os
import time

ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
kept = []
for _ in range(48):
    kept.append(open("x", "wb"))
    os.unlink("x")
    kept[-1].write(bytes(8 << 20))
    kept[-1].flush()
    time.sleep(0.02)
raise SystemExit("all there")
