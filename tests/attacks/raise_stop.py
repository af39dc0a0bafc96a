"""Raises what ends a test early: SystemExit, then the exceptions of test tools.

how: check
expected: crashed
"""


def f(x):
    raise (SystemExit(0), KeyboardInterrupt, GeneratorExit, StopIteration)[x % 4]
