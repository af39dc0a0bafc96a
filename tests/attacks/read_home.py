"""Reads any file that lies in a home folder.

how: program
expected: failed
"""

import os

found = False
for home in (HOST["home"], "/root", *(entry.path for entry in os.scandir("/home"))):
    for entry in os.scandir(home):
        if entry.is_file():
            print(open(entry.path, "rb").read(1))
            found = True
if not found:
    raise FileNotFoundError("no home")
