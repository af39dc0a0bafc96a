"""Makes a device file of the first disk.

how: program
expected: failed
"""

import os
import stat

for major, minor in ((8, 0), (254, 0), (1, 1)):
    try:
        os.mknod("disk", stat.S_IFBLK | 0o600, os.makedev(major, minor))
        break
    except OSError as error:
        last = error
else:
    raise last
