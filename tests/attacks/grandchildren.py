"""Works on in a grandchild whose parent is gone, where nobody might count.

how: program
expected: timeout
"""

import os
import time

if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        while True:
            pass
    os._exit(0)
os.wait()
time.sleep(20)
