"""Opens files without end.

how: program
expected: failed
"""

import os

while True:
    os.open("/dev/null", os.O_RDONLY)
