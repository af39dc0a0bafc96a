"""Kills its process group, hoping that ours is the same.

how: program
expected: crashed
"""

import os

os.kill(0, 9)
