"""Writes somewhere else than into its own folder.

how: program
expected: failed
"""

import os
import sys

for folder in (HOST["folder"], "/", "/usr", "/etc", "/var/tmp", "/run", "/dev", "/opt", sys.prefix):
    try:
        open(os.path.join(folder, "written-by-attack"), "w").close()
        break
    except OSError as error:
        last = error
else:
    raise last
