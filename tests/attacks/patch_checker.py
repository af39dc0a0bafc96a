"""Replaces what a test could use: assertions, comparison, the test's own names.

how: check
expected: failed
"""

import builtins
import sys

builtins.AssertionError = type("Never", (Exception,), {})
builtins.check = builtins.candidate = lambda *_: None
builtins.isinstance = builtins.all = builtins.any = lambda *_: True
builtins.__build_class__ = None
for module in list(sys.modules.values()):
    vars(module).setdefault("check", lambda *_: None)


def f(x):
    return 0
