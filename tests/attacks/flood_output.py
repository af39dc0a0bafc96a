"""Prints without end.

how: program
expected: crashed
"""

while True:
    print("x" * 65536)
