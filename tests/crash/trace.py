"""``python trace.py FILE [ARGUMENTS]``: the command line, with what it asks of the disk written to FILE.

One pickled operation after the other, for everything below ``rounds/`` and ``checkpoints/``: ``("sync", path,
content)`` with the file's bytes, ``("sync folder", path)``, ``("rename", path, path)``, ``("create", path)``,
``("remove", path)``, ``("mkdir", path)``, ``("rmdir", path)``, ``("symlink", path, target)``.
"""

import os
import pickle
import sys
from pathlib import Path

from ssd_loop.cli import main


def arm(log: Path) -> None:
    file, here = log.open("wb"), Path.cwd()
    real_sync = os.fsync

    def note(operation: str, path: str | Path, *more: object) -> None:
        path = os.path.relpath(path, here)
        if path.split(os.sep)[0] in ("rounds", "checkpoints"):
            file.write(pickle.dumps((operation, path, *more)))
            file.flush()

    def sync(handle: int) -> None:
        real_sync(handle)
        path = os.readlink(f"/proc/self/fd/{handle}")
        if os.path.isdir(path):
            note("sync folder", path)
        else:
            note("sync", path, Path(path).read_bytes())

    def absolute(path: object, folder: object) -> str:
        """The path, of a folder that is given as an open file where there is one."""
        top = os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else here
        return os.path.join(top, os.fsdecode(path))

    def hook(event: str, arguments: tuple) -> None:
        # What is audited has not happened yet: it does right after, or fails and is tidied up.
        if event == "os.rename":
            source, target, folder, other = arguments
            note("rename", absolute(source, folder), os.path.relpath(absolute(target, other), here))
        elif event in ("os.remove", "os.rmdir"):
            note(event.removeprefix("os."), absolute(*arguments))
        elif event == "os.mkdir":
            path, _, folder = arguments
            note("mkdir", absolute(path, folder))
        elif event == "os.symlink":
            target, path, folder = arguments
            note("symlink", absolute(path, folder), os.fsdecode(target))
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, _, flags = arguments
            if flags & os.O_CREAT and not os.path.lexists(path):
                note("create", absolute(path, None))

    os.fsync = sync
    sys.addaudithook(hook)


if __name__ == "__main__":
    arm(Path(sys.argv[1]).absolute())
    sys.exit(main(sys.argv[2:]))
