"""Kills every process it may kill.

how: program
expected: failed
"""

import os

os.kill(-1, 9)
raise SystemExit("and now?")
