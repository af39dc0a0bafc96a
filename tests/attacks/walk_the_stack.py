"""Finds the driver's secret and channel in the frames below and sends an end of its own.

how: check
expected: crashed
"""

import os
import sys


def f(x):
    frame = sys._getframe()
    while frame is not None:
        job, fd = frame.f_locals.get("job"), frame.f_locals.get("channel_fd")
        if job and fd:
            os.write(fd, f'["end","{job["token"]}"]\n'.encode())
            os._exit(0)
        frame = frame.f_back
    return 0
