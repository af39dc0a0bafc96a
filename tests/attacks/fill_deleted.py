"""Fills the disk with files that are deleted and still open.

how: program
expected: failed or crashed
"""

import os

kept = []
for number in range(48):
    kept.append(open("x", "wb"))
    os.unlink("x")
    kept[-1].write(bytes(8 << 20))
    kept[-1].flush()
