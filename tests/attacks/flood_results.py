"""Writes without end to every open file, the one for results among them.

how: program
expected: crashed
"""

import os

while True:
    for fd in range(3, 64):
        try:
            os.write(fd, b"[" * 65536)
        except OSError:
            pass
