"""Reads a file of the host through the root folders that /proc offers.

how: program
expected: failed
"""

import os

for pid in ("self", "1", str(os.getppid()), str(HOST["pid"])):
    for way in ("root", "cwd", "task/1/root"):
        try:
            print(open(f"/proc/{pid}/{way}{HOST['file']}").read())
            break
        except OSError as error:
            last = error
    else:
        continue
    break
else:
    raise last
