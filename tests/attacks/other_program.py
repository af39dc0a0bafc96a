"""Becomes a shell that never ends.

how: program
expected: timeout
"""

import os

os.execv("/bin/sh", ["sh", "-c", "trap '' TERM XCPU; while :; do :; done"])
