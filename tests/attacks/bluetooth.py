"""Opens a Bluetooth socket.

how: program
expected: failed
"""

import socket

socket.socket(31, 3, 1)
