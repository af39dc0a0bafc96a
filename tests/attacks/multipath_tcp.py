"""Opens a socket of a rare protocol (MPTCP).

how: program
expected: failed
"""

import socket

socket.socket(2, 1, 262)
