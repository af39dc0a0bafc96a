"""Opens a socket to the machine below this virtual one.

how: program
expected: failed
"""

import socket

socket.socket(40, 1, 0)
