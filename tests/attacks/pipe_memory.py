"""Takes 256 MiB of kernel memory in pipes.

how: program
expected: failed
"""

import fcntl
import os

taken, size = 0, 1 << 20
while taken < 256 << 20:
    _, end = os.pipe()
    fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, size)
    taken += os.write(end, bytes(size))
