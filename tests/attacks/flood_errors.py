"""Prints without end to standard error, from two processes.

how: program
expected: crashed
"""

import os
import sys

os.fork()
while True:
    sys.stderr.write("x" * 65536)
