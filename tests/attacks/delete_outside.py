"""Deletes a file of the host, then renames it, then swaps its folder.

how: program
expected: failed
"""

import os

for attempt in (os.unlink, lambda path: os.rename(path, path + "x"), lambda path: os.rename("main.py", path)):
    try:
        attempt(HOST["file"])
        break
    except OSError as error:
        last = error
else:
    raise last
