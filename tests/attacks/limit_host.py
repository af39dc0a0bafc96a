"""Gives the host's process a processor time of nothing.

how: program
expected: failed
"""

import resource

resource.prlimit(HOST["sibling"], resource.RLIMIT_CPU, (0, 0))
