"""Freezes its process group, hoping that ours is the same.

how: program
expected: timeout
"""

import os
import signal

os.kill(0, signal.SIGSTOP)
while True:
    signal.pause()
