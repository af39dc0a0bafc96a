"""Lifts its own limits.

how: program
expected: failed
"""

import resource

for name in ("RLIMIT_AS", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_CPU"):
    resource.setrlimit(getattr(resource, name), (resource.RLIM_INFINITY,) * 2)
