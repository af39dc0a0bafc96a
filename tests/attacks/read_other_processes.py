"""Reads memory, command line and open files of the host's process.

how: program
expected: failed
"""

pid = HOST["pid"]
for name in ("mem", "maps", "cmdline", "environ", "status", "fd/0"):
    try:
        print(open(f"/proc/{pid}/{name}", "rb").read(64))
        break
    except OSError as error:
        last = error
else:
    raise last
