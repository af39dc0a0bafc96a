"""The sandbox where user namespaces are forbidden: when it takes over, what it says, what it keeps in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ssd_loop import judging, sandbox
from ssd_loop.config import SandboxConfig
from ssd_loop.doctor import checks
from ssd_loop.errors import SandboxUnavailableError
from ssd_loop.sandbox import Limits, bubblewrap, landlock, runs
from ssd_loop.sandbox.launching import ENVIRONMENT

try:
    LAUNCHER = runs._first_to_start(landlock.candidates())
except SandboxUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

# As the default profile of a container does, to this process and all below it.
FORBID_NAMESPACES = """
import errno
from seccompy import ArgCmp, CmpOp, Filter
rules = Filter()
rules.errno("unshare", errno.EPERM)
rules.errno("clone3", errno.ENOSYS)
rules.errno("mount", errno.EPERM)
rules.errno("setns", errno.EPERM)
rules.errno("clone", errno.EPERM, args=[ArgCmp(0, CmpOp.MASKED_EQ, 0x10000000, mask=0x10000000)])
rules.load()
"""


@pytest.fixture
def only_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_launcher", lambda: (LAUNCHER, "bubblewrap cannot start (no): run `this`"))


def restricted(code: str, folder: Path) -> subprocess.Popen[str]:
    """Runs `code` where user namespaces are forbidden; what it leaves behind is in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-c", FORBID_NAMESPACES + code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_takes_over_where_user_namespaces_are_forbidden(tmp_path: Path) -> None:
    code = (
        "from ssd_loop import judging, sandbox\n"
        "from ssd_loop.config import SandboxConfig\n"
        "ran = sandbox.run_program('print(6 * 7)')\n"
        "print(sandbox.isolation(), ran.isolation, ran.outcome, ran.stdout)\n"
        "judging.require_sandbox(SandboxConfig())\n"
    )
    said, warned = restricted(code, tmp_path).communicate()
    assert said.split() == ["landlock", "landlock", "passed", "42"], warned
    assert "code runs under landlock" in warned
    assert "allow user namespaces" in warned or "run `" in warned


def test_bubblewrap_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    if sandbox.isolation() != "bubblewrap":
        pytest.skip(sandbox.why_not_bubblewrap())
    monkeypatch.setattr(landlock, "candidates", lambda: pytest.fail("asked for Landlock"))
    launcher, why = runs._launcher.__wrapped__()
    assert (launcher.isolation, why) == ("bubblewrap", "")


def test_with_neither_one_sentence_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    where = Path("/nowhere" * 20)
    missing = bubblewrap.Launcher(where / "bwrap", where, Path("/python"), (), True, False)
    monkeypatch.setattr(bubblewrap, "candidates", lambda: [missing])
    monkeypatch.setattr(landlock, "abi_version", lambda: 1)
    with pytest.raises(
        SandboxUnavailableError, match=r"^bubblewrap cannot start.*version 1, too old"
    ) as said:
        runs._launcher.__wrapped__()
    assert len(str(said.value)) <= 400


@pytest.mark.usefixtures("only_landlock")
def test_doctor_warns_and_says_what_would_allow_bubblewrap(capsys: pytest.CaptureFixture[str]) -> None:
    ran = sandbox.run_program("print(42)")
    finding = checks.judge_sandbox(sandbox.isolation(), ran, sandbox.why_not_bubblewrap())
    assert (finding.verdict, finding.remedy) == ("warn", "run `this`")
    assert finding.detail.startswith("landlock; a program ran in")
    assert finding.detail.endswith("bubblewrap cannot start (no)")
    judging.require_sandbox(SandboxConfig())
    assert "code runs under landlock" in capsys.readouterr().err
    judging.require_sandbox(SandboxConfig(execute=False))
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("only_landlock")
def test_a_folder_of_its_own_that_is_gone_afterwards() -> None:
    source = (
        "import os, tempfile\nprint(os.getcwd())\nprint(sorted(os.environ))\n"
        "os.makedirs('a' * 200 + '/b')\nos.mkdir('closed', 0)\n"
        "with tempfile.TemporaryFile() as file:\n    file.write(b'x')\n"
    )
    ran = sandbox.run_program(source)
    assert ran.outcome == "passed", ran.stderr
    folder, environment = ran.stdout.splitlines()
    assert environment == str(sorted({*ENVIRONMENT, "PWD", "TMPDIR"}))
    assert not Path(folder).exists()


@pytest.mark.usefixtures("only_landlock")
def test_what_honest_programs_do_works() -> None:
    source = (
        "import asyncio, os, shutil, subprocess, sys, threading\n"
        "asyncio.run(asyncio.sleep(0))\n"
        "open('a', 'w').write('x')\n"
        "shutil.copy2('a', 'b')\n"
        "os.chmod('b', 0o700)\n"
        "os.rename('b', 'c')\n"
        "print(subprocess.run(['sort'], input='b\\na\\n', text=True, capture_output=True).stdout.split())\n"
        "print(subprocess.run([sys.executable, '-S', '-c', 'print(1)'], capture_output=True,"
        " start_new_session=True).stdout)\n"
        "open('/dev/null', 'w').write('x')\n"
        "print(len(open('/dev/urandom', 'rb').read(8)), open('/dev/stdin').read())\n"
    )
    ran = sandbox.run_program(source, stdin="in")
    assert (ran.outcome, ran.stdout) == ("passed", "['a', 'b']\nb'1\\n'\n8 in\n"), ran.stderr


@pytest.mark.parametrize(
    "source",
    [
        "import os; os.kill(SIBLING, 9)",
        "import os; os.kill(-1, 9); raise SystemExit(1)",
        "import os, signal; os.kill(SIBLING, signal.SIGSTOP)",
        "import os, signal; signal.pidfd_send_signal(os.pidfd_open(SIBLING), 9)",
        "import fcntl, os\nreading, writing = os.pipe()\nfcntl.fcntl(reading, fcntl.F_SETOWN, SIBLING)\n",
    ],
)
def test_without_scopes_of_the_kernel_signals_stay_inside(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Landlock before its sixth version: its scope is not asked for, so that the filter alone counts."""
    assert isinstance(LAUNCHER, landlock.Launcher)
    older = replace(LAUNCHER, abi=landlock.SCOPED_ABI - 1)
    monkeypatch.setattr(runs, "_launcher", lambda: (older, ""))
    with subprocess.Popen(["sleep", "60"], start_new_session=True, **same_user()) as sibling:
        ran = sandbox.run_program(source.replace("SIBLING", str(sibling.pid)))
        state = Path(f"/proc/{sibling.pid}/stat").read_text().rpartition(")")[2].split()[0]
        sibling.kill()
    assert ran.outcome == "failed", ran
    assert "Operation not permitted" in ran.stderr
    assert state == "S"
    assert sandbox.run_program("import os; os.kill(0, 9)").outcome == "crashed"


def same_user() -> dict[str, int]:
    """Who runs the programs, so that it is not the user's number that protects."""
    return {"user": 65534, "group": 65534} if os.geteuid() == 0 else {}


def test_everything_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "from ssd_loop import sandbox\n"
        "sandbox.isolation()\nprint('ready', flush=True)\n"
        "sandbox.run_program('import os, time\\nif os.fork() == 0:\\n    os.setsid()\\n"
        '    os.execv("/bin/sleep", ["MARK", "60"])\\ntime.sleep(60)\')'
    ).replace("MARK", mark := f"ends-with-{os.getpid()}")
    host = restricted(code, tmp_path)
    assert host.stdout is not None
    assert host.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 15
    while not running(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running(mark)
    host.send_signal(signal.SIGKILL)
    host.communicate()
    while running(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(mark)


def running(mark: str) -> bool:
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            found.append(Path(f"/proc/{entry}/cmdline").read_text(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return any(line.startswith(mark) for line in found)


@pytest.mark.usefixtures("only_landlock")
def test_the_folder_is_bounded_deleted_files_included() -> None:
    fill = "import os\nkept = []\nfor i in range(40):\n    kept.append(open('x', 'wb'))\n    FORGET\n"
    fill += "    kept[-1].write(bytes(1 << 20))\n    kept[-1].flush()\nimport time; time.sleep(5)\n"
    for forget in ("os.rename('x', str(i))", "os.unlink('x')"):
        ran = sandbox.run_program(fill.replace("FORGET", forget), limits=Limits(tmp_mib=8, wall_s=8))
        assert ran.outcome == "crashed", ran
        assert ran.seconds < 4
