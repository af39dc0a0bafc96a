"""Pushes its memory out to disk, where it does not count.

how: program
expected: failed
"""

import mmap

area = mmap.mmap(-1, 1 << 20)
area.write(b"x" * (1 << 20))
area.madvise(21)
