"""Never ends inside of one call in C, where no exception gets in.

how: program
expected: timeout
"""

import re

re.match(r"(a+)+$", "a" * 64 + "b")
