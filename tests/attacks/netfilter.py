"""Opens a socket to the kernel's packet filter (NETLINK_NETFILTER).

how: program
expected: failed
"""

import socket

socket.socket(16, 3, 12)
