"""Uses files and folders of the host that were left open.

how: program
expected: failed
"""

import os
import stat

for fd in range(3, 1024):
    try:
        mode, links = os.fstat(fd).st_mode, os.fstat(fd).st_nlink
    except OSError:
        continue
    if stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and links):
        break
else:
    raise FileNotFoundError("none")
