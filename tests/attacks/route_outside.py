"""Looks for a way out: connecting a datagram socket succeeds where there is a route.

how: program
expected: failed
"""

import socket

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
    ours.connect(("192.0.2.1", 53))
