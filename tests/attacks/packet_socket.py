"""Opens a socket that sees every packet (AF_PACKET).

how: program
expected: failed
"""

import socket

socket.socket(17, 3, 0)
