"""Looks for a secret in its own environment and in that of every process.

how: program
expected: failed
"""

import glob
import os

found = dict(os.environ)
for path in glob.glob("/proc/*/environ"):
    try:
        found[path] = open(path).read()
    except OSError:
        pass
assert HOST["secret_name"] in str(found)
