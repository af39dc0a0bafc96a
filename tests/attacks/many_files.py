"""Makes files without end.

how: program
expected: timeout or crashed or failed
"""

number = 0
while True:
    open(str(number), "w").close()
    number += 1
