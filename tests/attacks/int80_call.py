"""Calls by the numbers of 32-bit programs, to pass a filter of the usual ones.

how: program
expected: crashed or failed
"""

import ctypes
import mmap
import platform

assert platform.machine() == "x86_64"
area = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
area.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
assert ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(area)))() > 0
