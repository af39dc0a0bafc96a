"""Converted models of this machine: a cached folder is whole, or it is not used."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssd_loop import interrupts
from ssd_loop.durable import sync
from ssd_loop.errors import BadArtifactError, SsdLoopError

CACHE_VERSION = 1  # raised when what is written into the cache changes
SIZES_FILE = "cached_sizes.json"


def default_cache_dir() -> Path:
    """`ssd_loop/` in XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "ssd_loop"


def cached(cache: Path, key: str, write: Callable[[Path], None]) -> Path:
    """The folder `key` in the cache, written first where it is missing or torn.

    A kernel lock makes a second process wait for the first; it is free again when its holder dies. A
    folder appears under its name by one rename, with everything in it on disk.
    """
    target = cache / f"{key}-v{CACHE_VERSION}"
    if is_whole(target):
        return target
    partial = target.with_name(f"{target.name}.partial")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f"{target.name}.lock")):
            if is_whole(target):
                return target
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(target, ignore_errors=True)
            partial.mkdir()
            write(partial)
            interrupts.heed()
            sizes = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
            write_json(partial / SIZES_FILE, sizes)
            for path in (*partial.iterdir(), partial):
                sync(path)
            partial.rename(target)
            sync(cache)
    except OSError as error:
        raise SsdLoopError(
            f"the model cache {cache} cannot be written ({error.strerror or error}); make room or set "
            "XDG_CACHE_HOME to another folder"
        ) from error
    return target


def is_whole(folder: Path) -> bool:
    """Whether a cached folder holds every file at the size it was written with."""
    sizes = folder / SIZES_FILE
    if not sizes.is_file():
        return False
    expected: dict[str, int] = read_json(sizes)
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in expected.items()
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Held by one process at a time; the kernel frees it when the holder dies."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadArtifactError(f"{path} is not valid JSON ({error}); restore it") from error
    if not isinstance(content, dict):
        raise BadArtifactError(f"{path} holds a {type(content).__name__}, not settings; restore it")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` in a form that depends on nothing else."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
