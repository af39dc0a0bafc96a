"""Opens a file of the host to everyone; what is only pretended does not count.

how: program
expected: failed
"""

import os
import stat

for change in (
    lambda: os.chmod(HOST["file"], 0o777),
    lambda: os.utime(HOST["file"], (0, 0)),
    lambda: os.setxattr(HOST["file"], "user.attack", b"1"),
):
    try:
        change()
    except OSError:
        pass
about = os.stat(HOST["file"])
assert stat.S_IMODE(about.st_mode) == 0o777 or about.st_mtime == 0
