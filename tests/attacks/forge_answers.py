"""Answers through the driver's channel before it is asked.

how: check
expected: failed
"""

import os


def f(x):
    for fd in range(3, 64):
        try:
            os.write(fd, b'["value",["int","0"]]\n["value",["bool","1"]]\n["value",["none"]]\n')
        except OSError:
            pass
    return 0
