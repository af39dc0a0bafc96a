"""Opens a raw socket.

how: program
expected: failed
"""

import socket

socket.socket(2, 3, 1)
