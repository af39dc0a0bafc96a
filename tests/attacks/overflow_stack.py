"""Recurses until the stack of the interpreter overflows.

how: program
expected: crashed
"""

import sys

sys.setrecursionlimit(10**9)


class Deep:
    def __repr__(self):
        return repr(self)


repr(Deep())
