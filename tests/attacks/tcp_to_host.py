"""Connects to a server of the host over TCP.

how: program
expected: failed
"""

import socket

socket.create_connection(("127.0.0.1", HOST["port"]), timeout=1)
