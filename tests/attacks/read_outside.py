"""Reads a file of the host.

how: program
expected: failed
"""

print(open(HOST["file"]).read())
