"""What runs inside the sandbox: sets the limits, runs one job, reports over a socket.

The host sends this module's compiled code with each job, so it imports nothing outside the
standard library and little of that: every import here is paid for by every sandboxed program.
It shares a process with code nobody trusts, hence `except BaseException` where that code is called.

Wire format: one JSON list per line towards the host, length-prefixed `marshal` towards the sandbox
(never the other way: `marshal` is unsafe on untrusted bytes).
"""

from __future__ import annotations

import atexit
import builtins
import marshal
import os
import resource
import sys

TYPE_CHECKING = False  # as type checkers know it; `typing` would double the start-up time
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, NoReturn

MAX_DEPTH = 50  # nesting of plain data; deeper values travel as foreign objects
SIZED: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}


def encode(value: Any, depth: int = 0) -> str:
    """Returns `value` as type-tagged JSON text.

    Only the exact built-in types count as plain data (and the three dict classes of `collections`,
    which travel as dict); anything else becomes `["foreign", class name]`, so that no object
    with an `__eq__` of its own can reach the code that compares.
    """
    kind = type(value)
    if value is None:
        return '["none"]'
    if kind in SIZED and depth < MAX_DEPTH:
        items = ",".join([encode(item, depth + 1) for item in value])
        return f'["{SIZED[kind]}",[{items}]]'
    if _is_dict(kind) and depth < MAX_DEPTH:
        pairs = [f"[{encode(key, depth + 1)},{encode(item, depth + 1)}]" for key, item in dict.items(value)]
        return f'["dict",[{",".join(pairs)}]]'
    if kind is bool:
        return f'["bool","{value:d}"]'
    if kind is int:
        return f'["int","{value:x}"]'
    if kind is float:
        return f'["float","{value.hex()}"]'
    if kind is complex:
        return f'["complex","{value.real.hex()}","{value.imag.hex()}"]'
    if kind is str:
        return f'["str","{_text(value)}"]'
    if kind is bytes:
        return f'["bytes","{value.hex()}"]'
    return f'["foreign","{_class_name(kind)}"]'


def decode(tree: Any, foreign: Callable[[str], object]) -> Any:
    """Returns the plain data that `encode` wrote; raises on a malformed tree.

    `foreign` makes the stand-in for an object that is not plain data from its class name.
    """
    tag, *body = tree
    if tag == "none":
        return None
    if tag == "bool":
        return body[0] == "1"
    if tag == "int":
        return int(body[0], 16)
    if tag == "float":
        return float.fromhex(body[0])
    if tag == "complex":
        return complex(float.fromhex(body[0]), float.fromhex(body[1]))
    if tag == "str":
        return text_of(body[0])
    if tag == "bytes":
        return bytes.fromhex(body[0])
    if tag == "dict":
        return {decode(key, foreign): decode(item, foreign) for key, item in body[0]}
    if tag == "foreign":
        return foreign(text_of(body[0]))
    for kind, name in SIZED.items():
        if tag == name:
            return kind(decode(item, foreign) for item in body[0])
    raise ValueError(f"unknown tag {tag!r}")


def text_of(digits: str) -> str:
    """Returns the text behind the hexadecimal digits that `encode` writes for it."""
    return bytes.fromhex(digits).decode("utf-8", "surrogatepass")


def main(job: dict[str, Any], channel_fd: int) -> None:
    """Runs `job` and tells the host how it went; the last line is the end mark.

    The mark is sent by the first `atexit` callback registered, hence the last one to run: after the
    job ended by itself, its threads were joined and its own callbacks ran.
    """
    if job["restrict"] is not None:
        _restrict(**job["restrict"], channel_fd=channel_fd)
    _set_limits(job["limits"])
    owner = os.getpid()
    ended = False

    def tell(line: str) -> None:
        data = memoryview(line.encode() + b"\n")
        while data and os.getpid() == owner:  # a forked child of the program says nothing
            data = data[os.write(channel_fd, data) :]

    def mark_end() -> None:
        if ended:
            tell(f'["end","{job["token"]}"]')

    os.set_inheritable(channel_fd, False)
    atexit.register(mark_end)
    _add_site_builtins()
    tell('["ready"]')
    try:
        if job["mode"] == "shell":
            _run_shell(job)
        elif job["mode"] == "program":
            _run_program(job["source"], job["home"])
        elif job["mode"] == "calls":
            _run_calls(job, tell)
        elif job["mode"] == "serve":
            _serve(job, tell, channel_fd)
        else:
            _run_test(job, tell, channel_fd)
        ended = True
    except BaseException as error:
        tell(f'["uncaught","{_class_name(type(error))}"]')
        if isinstance(error, SystemExit):
            raise
        error = error.with_traceback(_without_driver(error.__traceback__))
        sys.__excepthook__(type(error), error, error.__traceback__)
        sys.exit(1)


def _run_program(source: bytes, home: str) -> None:
    path = f"{home}/main.py"
    with open(path, "wb") as file:
        file.write(source)
    sys.argv = [path]
    sys.path.insert(0, home)
    exec(compile(source, path, "exec", dont_inherit=True), _new_module("__main__", path))


def _run_shell(job: dict[str, Any]) -> NoReturn:
    for name, content in job["files"].items():
        path = os.path.join(job["home"], name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    os.execv("/bin/sh", ["sh", "-c", job["command"]])


def _run_calls(job: dict[str, Any], tell: Callable[[str], None]) -> None:
    names, _ = _load(job)
    for call in job["calls"]:
        code = compile(call, "<call>", "eval", dont_inherit=True)
        tell(_answer(eval, code, names))


def _serve(job: dict[str, Any], tell: Callable[[str], None], channel_fd: int) -> None:
    _, function = _load(job)
    while (request := _receive(channel_fd)) is not None:
        args, kwargs = decode(request, _Opaque)
        tell(_answer(function, *args, **kwargs))


def _run_test(job: dict[str, Any], tell: Callable[[str], None], channel_fd: int) -> None:
    def candidate(*args: Any, **kwargs: Any) -> Any:
        request = encode((args, kwargs))
        if '["foreign"' in request:  # text travels as digits, so this is a tag
            raise TypeError("the candidate can be called with plain data only")
        tell(f'["call",{request}]')
        reply = _receive(channel_fd)
        if reply is None:
            raise EOFError("the candidate's process is gone")
        if reply[0] == "raised":
            raise _exception(text_of(reply[1]))
        return decode(reply[1], _Opaque)

    names = _new_module("test", "<test>")
    names[job["entry_point"]] = candidate
    for part in (job["preamble"], job["test"]):
        exec(compile(part, "<test>", "exec", dont_inherit=True), names)
    names[job["entry_point"]] = candidate  # a preamble may define a stub of the same name
    names["check"](candidate)


class _Opaque:
    """Stands for an object of the candidate that is not plain data; equals nothing else."""

    def __init__(self, class_name: str) -> None:
        self.class_name = class_name


def _load(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[..., Any]]:
    names = _new_module("candidate", "<candidate>")
    exec(compile(job["source"], "<candidate>", "exec", dont_inherit=True), names)
    function = names.get(job["entry_point"])
    if not callable(function):
        raise NameError(f"the program defines no function {job['entry_point']!r}")
    return names, function


def _answer(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    try:
        return f'["value",{encode(function(*args, **kwargs))}]'
    except BaseException as error:
        return _raised(error)


def _raised(error: BaseException) -> str:
    return f'["raised","{_class_name(type(error))}"]'


def _exception(class_name: str) -> BaseException:
    kind = getattr(builtins, class_name, None)
    if isinstance(kind, type) and issubclass(kind, BaseException):
        empty: BaseException = kind.__new__(
            kind
        )  # some, such as UnicodeDecodeError, need arguments for __init__
        return empty
    own: BaseException = type(class_name, (Exception,), {})()
    return own


def _class_name(kind: type) -> str:
    return _text(type.__dict__["__name__"].__get__(kind))  # a metaclass cannot answer instead


def _text(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").hex()


def _is_dict(kind: type) -> bool:
    if kind is dict:
        return True
    collections = sys.modules.get("collections")  # not imported: then no such object exists
    names = ("OrderedDict", "defaultdict", "Counter")
    return any(kind is getattr(collections, name, None) for name in names)


def _receive(fd: int) -> Any:
    header = _read_exactly(fd, 4)
    if header is None:
        return None
    body = _read_exactly(fd, int.from_bytes(header, "big"))
    return None if body is None else marshal.loads(body)


def _read_exactly(fd: int, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        chunk = os.read(fd, size - len(data))
        if not chunk:
            return None
        data += chunk
    return data


def _restrict(close: int, ruleset: int, filters: tuple[bytes, ...], channel_fd: int) -> None:
    """Goes on in a child, in a Landlock domain and behind filters of system calls; this process waits for it.

    Where there are no namespaces; under bubblewrap nothing is left to do. Source: seccomp(2), landlock(7),
    PR_SET_CHILD_SUBREAPER(2const).

    Raises:
        OSError: the kernel refused.
    """
    import ctypes

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]

    libc = ctypes.CDLL(None, use_errno=True)

    def control(option: int, *arguments: object) -> None:
        words = [*arguments, 0, 0, 0, 0][:4]
        accept(libc.prctl(option, *(ctypes.c_ulong(w) if isinstance(w, int) else w for w in words)))

    def accept(status: int) -> None:
        if status != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))

    os.close(close)
    control(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans stay below this process, where they are counted
    program = os.fork()
    if program:
        os.close(channel_fd)
        while (ended := os.wait())[0] != program:
            pass
        status = os.waitstatus_to_exitcode(ended[1])
        os._exit(status if status >= 0 else 128 - status)  # as a shell says it
    control(38, 1)  # PR_SET_NO_NEW_PRIVS
    accept(libc.syscall(446, ruleset, 0))  # landlock_restrict_self
    os.close(ruleset)
    for code in filters:
        # PR_SET_SECCOMP, SECCOMP_MODE_FILTER; an instruction has 8 bytes
        control(22, 2, ctypes.byref(Program(len(code) // 8, code)))


def _set_limits(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        # One more second between the soft CPU limit (SIGXCPU) and the hard one (SIGKILL).
        hard = value + 1 if name == "RLIMIT_CPU" else value
        highest = resource.getrlimit(getattr(resource, name))[1]
        if highest != resource.RLIM_INFINITY:
            value, hard = min(value, highest), min(hard, highest)
        resource.setrlimit(getattr(resource, name), (value, hard))


def _add_site_builtins() -> None:
    # `-S` saves a third of the start-up time and these two names, which programs do use.
    import _sitebuiltins

    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D"))


def _new_module(name: str, path: str) -> dict[str, Any]:
    module = type(sys)(name)
    module.__file__ = path
    sys.modules[name] = module  # dataclasses and pickle look a class's module up by name
    return module.__dict__


def _without_driver(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_frame.f_globals is globals():
        traceback = traceback.tb_next
    return traceback
