"""Takes memory in many processes, each within its own limit.

how: program
expected: crashed
"""

import os
import time

for _ in range(12):
    if os.fork() == 0:
        kept = b"x" * (100 << 20)
        time.sleep(20)
        os._exit(0)
time.sleep(20)
