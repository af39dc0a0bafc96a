"""The table of refused system calls: what it does to programs is tried in tests/attacks."""

from __future__ import annotations

import platform

import pytest
from seccompy.syscalls import syscall_nr

from ssd_loop.errors import SandboxUnavailableError
from ssd_loop.sandbox import syscalls

TABLES = (
    *syscalls.REFUSED.values(),
    *(syscalls.MISSING, syscalls.PRETENDED, syscalls.REFUSED_IN_SIGHT, syscalls.PRETENDED_IN_SIGHT),
    *(syscalls.UNSUPPORTED_IN_SIGHT, syscalls.REFUSED_UNSCOPED),
)
# Only in the older numbering, of x86_64.
OLD = ["iopl", "ioperm", "uselib", "modify_ldt", "chmod", "chown", "lchown", "utime", "utimes", "futimesat"]
MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS, linux/bpf_common.h


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_name_is_known_and_the_filters_fit(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    names = [name for table in TABLES for name in table.split()]
    unknown = []
    for name in names:
        try:
            assert syscall_nr(name) <= syscall_nr(syscalls.NEWEST)
        except ValueError:
            unknown.append(name)
    assert unknown == ([] if machine == "x86_64" else OLD)
    assert len(names) == len(set(names))
    for program in syscalls._known.__wrapped__():
        assert len(program) % 8 == 0
        assert 0 < len(program) // 8 < MOST_INSTRUCTIONS


def test_another_processor_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(SandboxUnavailableError, match="knows x86_64 and aarch64"):
        syscalls._known.__wrapped__()
