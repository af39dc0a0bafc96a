"""Fills /dev/shm with 512 MiB.

how: program
expected: failed or crashed
"""

for number in range(64):
    with open(f"/dev/shm/attack-{number}", "wb") as file:
        file.write(bytes(8 << 20))
