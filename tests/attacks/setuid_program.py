"""Runs a program that runs as root.

how: program
expected: failed
"""

import glob
import os
import stat
import subprocess

for path in glob.glob("/usr/bin/*"):
    if os.stat(path, follow_symlinks=False).st_mode & stat.S_ISUID:
        subprocess.run([path, "--version"], capture_output=True, check=False)
ran = subprocess.run(["/usr/bin/su", "-c", "id"], capture_output=True, check=True)
