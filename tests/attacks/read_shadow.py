"""Reads the password hashes.

how: program
expected: failed
"""

print(open("/etc/shadow").read())
