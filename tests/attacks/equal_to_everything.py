"""Returns an object that equals everything.

how: check
expected: failed
"""


class Equal(int):
    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    __hash__ = int.__hash__


def f(x):
    return Equal()
