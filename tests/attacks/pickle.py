"""Returns an object that runs a command where it is loaded.

how: check
expected: failed
"""

import os


class Load:
    def __reduce__(self):
        return os.system, ("touch " + HOST["folder"] + "/written-by-pickle",)

    __repr__ = __str__ = __hash__ = lambda self: os.system("touch " + HOST["folder"] + "/written-by-repr")


def f(x):
    return Load()
