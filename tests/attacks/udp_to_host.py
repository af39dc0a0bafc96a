"""Sends a datagram to the host and waits for its echo.

how: program
expected: failed
"""

import socket

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
    ours.settimeout(0.3)
    ours.sendto(b"here", ("127.0.0.1", HOST["udp_port"]))
    ours.recv(16)
