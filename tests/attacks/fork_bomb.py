"""Forks without end, and again where it fails.

how: program
expected: timeout or crashed
"""

import os

while True:
    try:
        os.fork()
    except OSError:
        pass
