"""Changes its root folder, to climb out of it.

how: program
expected: failed
"""

import os

os.mkdir("root")
os.chroot("root")
