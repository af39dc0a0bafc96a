"""Lowers the priority of all processes of the user.

how: program
expected: failed
"""

import os

os.setpriority(os.PRIO_USER, 0, 19)
os.sched_setaffinity(HOST["sibling"], {0})
