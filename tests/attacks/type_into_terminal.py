"""Types a command into the terminal that started us (TIOCSTI).

how: program
expected: failed
"""

import fcntl
import os
import termios

fds = [0, 1, 2]
try:
    fds.append(os.open("/dev/tty", os.O_RDWR))
except OSError:
    pass
for fd in fds:
    try:
        fcntl.ioctl(fd, termios.TIOCSTI, b"x")
        break
    except OSError as error:
        last = error
else:
    raise last
