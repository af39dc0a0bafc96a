"""Forgets the exit handlers and the failure.

how: program
expected: failed
"""

import atexit
import os
import sys

atexit._clear()
sys.excepthook = lambda *_: None
os.write = lambda fd, data: len(data)
raise ValueError
