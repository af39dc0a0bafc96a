"""Leaves a process in a session of its own behind and says it went well.

how: program
expected: crashed
"""

import os

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv("/bin/sleep", [HOST["left_over"], "30"])
    os._exit(0)
os.wait()
os._exit(0)
