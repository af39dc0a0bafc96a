"""Takes shared memory in many processes, each within its own limit.

how: program
expected: crashed
"""

import mmap
import os
import time

for _ in range(12):
    if os.fork() == 0:
        area = mmap.mmap(-1, 60 << 20)
        area.write(b"x" * (60 << 20))
        time.sleep(20)
        os._exit(0)
time.sleep(20)
