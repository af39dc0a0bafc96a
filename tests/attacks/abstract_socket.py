"""Connects to a Unix socket of the host by its abstract name, which no file guards.

how: program
expected: failed
"""

import socket

with socket.socket(socket.AF_UNIX) as ours:
    ours.connect("\0" + HOST["abstract"])
