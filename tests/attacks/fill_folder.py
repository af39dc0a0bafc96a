"""Fills its own folder with 512 MiB.

how: program
expected: failed or crashed
"""

for number in range(64):
    with open(str(number), "wb") as file:
        file.write(bytes(8 << 20))
