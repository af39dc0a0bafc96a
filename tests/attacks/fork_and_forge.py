"""Lets a child say that all went well.

how: program
expected: crashed
"""

import os

if os.fork() == 0:
    pass
else:
    os.kill(os.getpid(), 9)
