"""Fills the buffers of all the sockets it can have, in many processes.

how: program
expected: crashed or failed
"""

import os
import socket
import time

for _ in range(28):
    if os.fork() == 0:
        kept = []
        try:
            while True:
                kept += socket.socketpair()
                for one in kept[-2:]:
                    one.setblocking(False)
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
                    try:
                        while True:
                            one.send(b"x" * 65536)
                    except BlockingIOError:
                        pass
        except OSError:
            pass
        time.sleep(3)
        os._exit(0)
time.sleep(3)
raise SystemExit("all there")
