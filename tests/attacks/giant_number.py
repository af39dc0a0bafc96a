"""Returns a number whose digits take for ever to print.

how: check
expected: failed
"""


def f(x):
    return 1 << 1_000_000
