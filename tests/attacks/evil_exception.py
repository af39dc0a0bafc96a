"""Raises what no handler expects, and lies about its class.

how: check
expected: failed
"""


class Evil(BaseException):
    __class__ = AssertionError
    __str__ = __repr__ = None

    def __getattribute__(self, name):
        raise SystemExit(0)


def f(x):
    raise Evil
