"""Reads what /sys tells of the machine.

how: program
expected: failed
"""

import os

print(os.listdir("/sys/class/net"), os.listdir("/sys/fs/cgroup"))
