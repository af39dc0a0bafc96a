"""Takes memory without end.

how: program
expected: crashed
"""

kept = []
while True:
    kept.append(bytearray(64 << 20))
