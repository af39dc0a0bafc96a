"""Uses no processor time and never ends.

how: program
expected: timeout
"""

import time

time.sleep(1_000)
