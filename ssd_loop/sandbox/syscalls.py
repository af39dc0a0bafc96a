"""Which system calls a sandboxed program may not make, compiled to seccomp filters.

The filters end nothing: a refused call fails with an error, as it would without the right to make it, so a
program sees an exception. `seccompy` knows the numbers of both processors and writes the kernel's code.

Sources: the calls that Docker's default profile refuses (docs.docker.com/engine/security/seccomp), those
listed in seccomp(2) and bubblewrap's manual, and what was tried against this sandbox.
"""

from __future__ import annotations

import errno
import functools
import socket
from collections.abc import Iterator, Mapping

from seccompy import ArgCmp, CmpOp, Filter, bpf
from seccompy import UnsupportedError as UnknownProcessorError
from seccompy.filter import Action
from seccompy.syscalls import syscall_nr

from ssd_loop.errors import SandboxUnavailableError

# The last call that was looked at, and the last that both numberings know (Linux 6.10). Later ones, and those
# of the x32 numbering, which begins at 2**30, answer that they do not exist.
NEWEST = "mseal"
SYSCALL_NUMBER_OFFSET = 0  # of `nr` in struct seccomp_data
INT = 0xFFFFFFFF  # an argument that the kernel reads as an int, whatever its upper half says

# Refused with EPERM everywhere.
REFUSED: Mapping[str, str] = {
    "memory that belongs to no process": "memfd_create memfd_secret shmget shmat shmctl semget msgget "
    "mq_open",
    "other processes": "ptrace process_vm_readv process_vm_writev pidfd_getfd process_madvise "
    "process_mrelease kcmp migrate_pages move_pages",
    "mounts and namespaces": "mount umount2 pivot_root chroot unshare setns open_tree move_mount fsopen "
    "fsconfig fsmount fspick mount_setattr",
    "files by handle, past every mount": "open_by_handle_at name_to_handle_at",
    "kernel programs, keys and counters": "bpf perf_event_open keyctl add_key request_key userfaultfd "
    "fanotify_init fanotify_mark inotify_add_watch lookup_dcookie",
    "the machine": "kexec_load kexec_file_load init_module finit_module delete_module reboot swapon swapoff "
    "syslog acct quotactl quotactl_fd settimeofday clock_settime clock_adjtime adjtimex sethostname "
    "setdomainname iopl ioperm vhangup nfsservctl uselib modify_ldt personality io_setup",
}
# Answered as if this kernel did not have them; clone3 because its flags cannot be seen by a filter, and
# C libraries then use clone.
MISSING = "clone3 io_uring_setup io_uring_enter io_uring_register"
# Answered as if done: they make the whole machine wait for its disks.
PRETENDED = "sync syncfs"

# linux/sched.h: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
CLONE_NAMESPACES = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
# asm-generic/ioctls.h: typing into a terminal.
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
# asm-generic/mman-common.h and linux/fcntl.h: pages from the machine's reserve of huge ones; pages pushed out
# to disk, where they do not count as resident; larger buffers in pipes.
MAP_SHARED, MAP_HUGETLB = 0x01, 0x40000
MADV_COLD, MADV_PAGEOUT = 20, 21
F_SETPIPE_SZ = 1031
# Shared memory outlives its mapping where a page of it stays mapped, and then counts nowhere: each piece is
# bounded here, and their number by the watch on the group.
SHARED_PIECE_BYTES = 64 << 20
PROTOCOLS = (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP)

# Without namespaces the machine's own processes, files and sockets are in sight.
REFUSED_IN_SIGHT = "socket pidfd_open pidfd_send_signal sched_setscheduler sched_setattr ioprio_set"
# As if done: they would take a process out of the group that is stopped as one, or change files of the
# same user that can only be read, which Landlock does not watch. Programs copy modes and times with files.
PRETENDED_IN_SIGHT = (
    "setsid setpgid chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat "
    "utime utimes utimensat futimesat"
)
UNSUPPORTED_IN_SIGHT = "setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr"
# Kernels before Landlock's sixth version do not keep signals in.
REFUSED_UNSCOPED = "tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo"
# asm-generic/fcntl.h and sockios.h: whom the kernel signals when a file is ready.
F_SETOWN, F_SETSIG, F_SETOWN_EX = 8, 10, 15
FIOSETOWN, SIOCSPGRP = 0x8901, 0x8902
# linux/fs.h: flags of a file, which its owner can set though it is open to read.
FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR = 0x40086602, 0x401C5820


def filters() -> tuple[bytes, ...]:
    """The kernel programs of a sandbox with namespaces of its own, in the order to load them.

    Raises:
        SandboxUnavailableError: the processor's call numbers are not known.
    """
    return _known()


def filters_in_sight(*, signals_are_scoped: bool) -> tuple[bytes, ...]:
    """The kernel programs where there are no namespaces: no sockets, nothing beyond the own process group.

    Args:
        signals_are_scoped: whether Landlock keeps signals in; else only the own group can be signalled.

    Raises:
        SandboxUnavailableError: the processor's call numbers are not known.
    """
    narrow = Filter()
    _answer(narrow, REFUSED_IN_SIGHT, errno.EPERM)
    _answer(narrow, UNSUPPORTED_IN_SIGHT, errno.EOPNOTSUPP)
    _answer(narrow, PRETENDED_IN_SIGHT, 0)
    for request in (FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR):
        narrow.errno("ioctl", errno.EPERM, args=[_int(1, request)])
    for name in ("prlimit64", "sched_setaffinity"):
        _only(narrow, name, [_int(0, 0)], errno.EPERM)
    # PRIO_PROCESS of oneself: PRIO_USER would reach every process of the user.
    _only(narrow, "setpriority", [_int(0, 0), _int(1, 0)], errno.EPERM)
    if not signals_are_scoped:
        _only(narrow, "kill", [_int(0, 0)], errno.EPERM)
        _answer(narrow, REFUSED_UNSCOPED, errno.EPERM)
        for command in (F_SETOWN, F_SETSIG, F_SETOWN_EX):
            narrow.errno("fcntl", errno.EPERM, args=[_int(1, command)])
        for request in (FIOSETOWN, SIOCSPGRP):
            narrow.errno("ioctl", errno.EPERM, args=[_int(1, request)])
    return (*_known(), narrow.program)


@functools.cache
def _known() -> tuple[bytes, ...]:
    try:
        return _beyond_newest(), _everywhere().program
    except UnknownProcessorError as error:
        raise SandboxUnavailableError(
            f"generated code runs behind a filter of system calls that knows x86_64 and aarch64 ({error}): "
            "use such a machine or set sandbox.execute to false"
        ) from error


def _beyond_newest() -> bytes:
    """Answers "no such call" to every number after `NEWEST`."""
    missing = int(Action.ERRNO) | errno.ENOSYS
    code = [
        bpf.Load(SYSCALL_NUMBER_OFFSET),
        bpf.Jump(bpf.BPF_JGT, syscall_nr(NEWEST), "missing", None),
        bpf.Ret(int(Action.ALLOW)),
        bpf.Ret(missing),
    ]
    return bpf.assemble(code, {"missing": 3})


def _everywhere() -> Filter:
    common = Filter()  # also ends programs that call by another processor's numbers, such as `int 0x80`
    for names in REFUSED.values():
        _answer(common, names, errno.EPERM)
    _answer(common, MISSING, errno.ENOSYS)
    _answer(common, PRETENDED, 0)
    for flag in CLONE_NAMESPACES:
        common.errno("clone", errno.EPERM, args=[ArgCmp(0, CmpOp.MASKED_EQ, flag, mask=flag)])
    for request in (TIOCSTI, TIOCLINUX):
        common.errno("ioctl", errno.EPERM, args=[_int(1, request)])
    common.errno("mmap", errno.ENOMEM, args=[ArgCmp(3, CmpOp.MASKED_EQ, MAP_HUGETLB, mask=MAP_HUGETLB)])
    common.errno(
        "mmap",
        errno.ENOMEM,
        args=[
            ArgCmp(1, CmpOp.GT, SHARED_PIECE_BYTES),
            ArgCmp(3, CmpOp.MASKED_EQ, MAP_SHARED, mask=MAP_SHARED),
        ],
    )
    for advice in (MADV_COLD, MADV_PAGEOUT):
        common.errno("madvise", errno.EINVAL, args=[_int(2, advice)])
    common.errno("fcntl", errno.EPERM, args=[_int(1, F_SETPIPE_SZ)])
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # as if done: it is a wish
        common.errno("setsockopt", 0, args=[_int(1, socket.SOL_SOCKET), _int(2, option)])
    common.allow("socket", args=[_int(0, socket.AF_UNIX)])
    for family in (socket.AF_INET, socket.AF_INET6):
        for protocol in PROTOCOLS:
            common.allow("socket", args=[_int(0, family), _int(2, protocol)])
    # The names of network interfaces are asked for over NETLINK_ROUTE, which is 0.
    common.allow("socket", args=[_int(0, socket.AF_NETLINK), _int(2, 0)])
    common.errno("socket", errno.EAFNOSUPPORT)
    _only(common, "socketpair", [_int(0, socket.AF_UNIX)], errno.EAFNOSUPPORT)
    return common


def _int(index: int, value: int) -> ArgCmp:
    return ArgCmp(index, CmpOp.MASKED_EQ, value, mask=INT)


def _only(filter_: Filter, name: str, args: list[ArgCmp], otherwise: int) -> None:
    filter_.allow(name, args=args)
    filter_.errno(name, otherwise)


def _answer(filter_: Filter, names: str, error: int) -> None:
    for name in _known_names(names):
        filter_.errno(name, error)


def _known_names(names: str) -> Iterator[str]:
    """Those that this processor has: newer ones have no `chmod`, only `fchmodat`."""
    for name in names.split():
        try:
            syscall_nr(name)
        except UnknownProcessorError:
            raise
        except ValueError:
            continue
        yield name
