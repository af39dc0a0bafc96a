"""Changes settings of the kernel: who handles crashes, then anything else.

how: program
expected: failed
"""

for path in (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/vm/drop_caches",
    "/proc/sysrq-trigger",
    "/sys/power/state",
    "/sys/kernel/mm/ksm/run",
    "/proc/self/oom_score_adj/../../sys/kernel/hostname",
):
    try:
        with open(path, "w") as file:
            file.write("1")
        break
    except OSError as error:
        last = error
else:
    raise last
