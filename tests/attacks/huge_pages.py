"""Takes pages from the machine's reserve of huge ones.

how: program
expected: failed
"""

import mmap

mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
