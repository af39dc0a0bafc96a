"""Empties a file of the host, by name and by opening it to read.

how: program
expected: failed
"""

import os

try:
    os.truncate(HOST["file"], 0)
except OSError:
    os.open(HOST["file"], os.O_RDONLY | os.O_TRUNC)
