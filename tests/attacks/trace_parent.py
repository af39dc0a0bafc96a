"""Attaches to its parent as a debugger, or lets itself be traced.

how: program
expected: failed
"""

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
if libc.ptrace(16, os.getppid(), 0, 0) and libc.ptrace(0, 0, 0, 0):
    raise OSError(ctypes.get_errno(), "ptrace")
