"""Pins the kernel's memory of every file it sees by watching it.

how: program
expected: failed
"""

import ctypes

libc = ctypes.CDLL(None, use_errno=True)
watcher = libc.inotify_init()
if libc.inotify_add_watch(watcher, b"/usr", 2) == -1:
    raise OSError(ctypes.get_errno(), "inotify_add_watch")
