"""Returns lists nested deeper than any parser follows.

how: check
expected: failed
"""


def f(x):
    nested = []
    for _ in range(100_000):
        nested = [nested]
    return nested
