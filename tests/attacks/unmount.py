"""Takes the read-only mounts away.

how: program
expected: failed
"""

import ctypes

libc = ctypes.CDLL(None, use_errno=True)
for path in (b"/usr", b"/proc", b"/tmp", b"/"):
    if libc.umount2(path, 2) == 0:
        break
else:
    raise OSError(ctypes.get_errno(), "umount2")
