"""Opens memory, disks and other devices.

how: program
expected: failed
"""

import glob

for path in (
    "/dev/mem",
    "/dev/kmsg",
    "/dev/kvm",
    "/dev/fuse",
    "/dev/userfaultfd",
    "/dev/net/tun",
    "/dev/vsock",
    *glob.glob("/dev/[vs]d?"),
    *glob.glob("/dev/nvidia*"),
    *glob.glob("/dev/loop*"),
):
    try:
        open(path, "rb").read(1)
        break
    except OSError as error:
        last = error
else:
    raise last
