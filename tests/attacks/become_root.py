"""Takes another user's number.

how: program
expected: failed
"""

import os

for number in (0, 1, 1001):
    for change in (os.setuid, os.setgid, os.seteuid):
        try:
            change(number)
        except OSError as error:
            last = error
assert 0 in os.getresuid() + os.getresgid(), last
