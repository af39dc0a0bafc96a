"""Opens a socket to the kernel's ciphers (AF_ALG).

how: program
expected: failed
"""

import socket

socket.socket(38, 5, 0)
