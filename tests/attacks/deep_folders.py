"""Nests folders deeper than a path can name, and closes them to their owner.

how: program
expected: failed or crashed
"""

import os

name = "d" * 200
for _ in range(100):
    os.mkdir(name)
    os.chdir(name)
os.mkdir("closed", 0)
raise SystemExit("buried")
