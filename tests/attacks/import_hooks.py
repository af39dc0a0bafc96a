"""Takes over imports, standard output and exit handlers.

how: check
expected: failed
"""

import atexit
import os
import sys


class Hook:
    def find_spec(self, *_):
        os._exit(0)


sys.meta_path.insert(0, Hook())
sys.stdout = sys.stderr = None
sys.excepthook = lambda *_: None
atexit._clear()


def f(x):
    return 0
