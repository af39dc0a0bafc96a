"""Reads a file of the host through a symbolic link and a hard link of its own.

how: program
expected: failed
"""

import os

os.symlink(HOST["file"], "link")
try:
    print(open("link").read())
except OSError:
    os.link(HOST["file"], "hard")
    print(open("hard").read())
