"""Connects to a Unix socket of the host by its path.

how: program
expected: failed
"""

import socket

with socket.socket(socket.AF_UNIX) as ours:
    ours.connect(HOST["unix"])
