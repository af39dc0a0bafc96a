"""Takes memory that belongs to no process (memfd_create).

how: program
expected: failed
"""

import os

for _ in range(48):
    os.write(os.memfd_create("hidden"), bytes(8 << 20))
