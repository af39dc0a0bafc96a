"""Leaves dead children lying until no process can be made.

how: program
expected: failed or crashed
"""

import os

for _ in range(1_000):
    if os.fork() == 0:
        os._exit(0)
