"""Ends its process with status 0 in the middle of a test.

how: check
expected: crashed
"""

import os


def f(x):
    os._exit(0)
