"""Makes one file of a terabyte, first without writing it.

how: program
expected: failed
"""

with open("huge", "wb") as file:
    try:
        file.truncate(1 << 40)
    except OSError:
        while True:
            file.write(bytes(1 << 20))
