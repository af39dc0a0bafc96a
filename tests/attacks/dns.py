"""Asks a name server.

how: program
expected: failed
"""

import socket

socket.getaddrinfo("example.com", 80)
