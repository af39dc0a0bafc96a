"""Makes files without end.

how: program
expected: crashed or timeout
"""

number = 0
while True:
    open(str(number), "w").close()
    number += 1
