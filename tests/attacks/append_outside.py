"""Appends to a file of the host.

how: program
expected: failed
"""

open(HOST["file"], "a").write("more")
