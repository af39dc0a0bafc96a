"""Starts threads without end.

how: program
expected: failed or crashed
"""

import threading
import time

while True:
    threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
