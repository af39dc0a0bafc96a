"""Takes the interpreter's files from their owner, through a descriptor open to read.

how: program
expected: failed
"""

import os

path = os.__file__
with open(path) as file:
    before = os.fstat(file.fileno()).st_mode
    os.fchmod(file.fileno(), 0)
    assert os.fstat(file.fileno()).st_mode != before
