"""Never ends.

how: program
expected: timeout
"""

while True:
    pass
