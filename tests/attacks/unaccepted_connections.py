"""Leaves full connections waiting for a server that never takes them, and closes its own ends.

how: program
expected: crashed or failed
"""

import socket
import time

server = socket.create_server(("127.0.0.1", 0), backlog=4096)
for _ in range(2000):
    with socket.create_connection(server.getsockname()) as one:
        one.setblocking(False)
        try:
            while True:
                one.send(b"x" * 65536)
        except BlockingIOError:
            pass
time.sleep(1)
raise SystemExit("all there")
