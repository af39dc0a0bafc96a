"""Takes one piece of shared memory that is larger than a piece may be.

how: program
expected: failed
"""

import mmap

mmap.mmap(-1, 100 << 20)
