"""Returns more than anybody wants to read.

how: check
expected: crashed or failed
"""


def f(x):
    return ["x" * 1000] * 100_000
