"""Ends its process by sys.exit(0) while it is loaded.

how: check
expected: crashed
"""

import sys

sys.exit(0)
