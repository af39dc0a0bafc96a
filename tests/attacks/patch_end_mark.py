"""Ends well by exit handlers although its work failed.

how: program
expected: crashed
"""

import atexit
import os

atexit.register(os._exit, 0)
1 / 0
