"""Kills the host's process, the supervisor and a sibling by their numbers.

how: program
expected: failed
"""

import os

for pid in (HOST["sibling"], HOST["pid"]):
    try:
        os.kill(pid, 9)
        break
    except OSError as error:
        last = error
else:
    raise last
