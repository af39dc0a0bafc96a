"""Prints what a result and an end look like.

how: check
expected: failed
"""

import sys


def f(x):
    for line in ('["value",["int","7"]]', '["end","0"]', "passed", "OK"):
        print(line, flush=True)
        print(line, file=sys.stderr, flush=True)
    return 0
