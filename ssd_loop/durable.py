"""Single files that are there whole or not at all, also after a power cut, and that notice a changed byte."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssd_loop.errors import BadArtifactError

SEAL = "self_sha256"


_SYSTEM_ERROR = re.compile(r"os error (\d+)")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise what libraries say of a full or failing disk as the OSError that it is, with what was written.

    safetensors tells the system's error in words ("os error 28"). PyTorch's writer, `inline_container`,
    notices only that its file is shorter than what it wrote. Arrow names no file.

    Args:
        path: What is written, for the message.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        named = _SYSTEM_ERROR.search(str(error))
        if named is None and "inline_container" not in str(error):
            raise
        number = int(named[1]) if named else errno.ENOSPC
        raise OSError(number, os.strerror(number), str(path)) from error
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def sha256_json(data: Any) -> str:
    """Hash of plain data in one canonical text form."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Return once the file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each on disk before anything is put into it."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    make_folder(path.parent)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync(path.parent)


def json_bytes(data: Any) -> bytes:
    """Plain data as sorted, indented JSON: the one form in which it is written."""
    return (json.dumps(data, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()


def finite(data: Any) -> Any:
    """Plain data with null for every number that is not finite: JSON has no other way to say it."""
    if isinstance(data, dict):
        return {name: finite(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def write_json(path: Path, data: Any) -> None:
    """Write plain data as sorted, indented JSON, whole or not at all."""
    write_bytes(path, json_bytes(data))


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        BadArtifactError: the file is missing or torn.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise BadArtifactError(f"{path} cannot be read; restore it") from None
    if not isinstance(found, dict):
        raise BadArtifactError(f"{path} holds no object; restore it")
    return found


def write_sealed(path: Path, data: Mapping[str, Any]) -> None:
    """Write plain data as JSON that holds its own hash, whole or not at all."""
    write_json(path, {**data, SEAL: sha256_json(dict(data))})


def read_sealed(path: Path, way_on: str) -> tuple[dict[str, Any], str]:
    """The data of a sealed file, and the SHA-256 of the file.

    Args:
        path: An existing file.
        way_on: What to do if it is damaged, for the message.

    Raises:
        BadArtifactError: a byte of it is other than it was written.
    """
    raw = path.read_bytes()
    try:
        data = json.loads(raw)
        del data[SEAL]
        written = json_bytes({**data, SEAL: sha256_json(data)})
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadArtifactError(f"{path} is torn; {way_on}") from None
    if written != raw:
        raise BadArtifactError(f"{path} was altered; {way_on}")
    return data, hashlib.sha256(raw).hexdigest()


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line to a log; a torn line is the reader's to skip, and takes no other line with it."""
    with path.open("ab+") as file:
        if size := file.seek(0, os.SEEK_END):
            file.seek(size - 1)
        is_torn = size > 0 and file.read(1) != b"\n"
        file.write((b"\n" if is_torn else b"") + json.dumps(row, sort_keys=True).encode() + b"\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a log, none where there is no log; torn lines are skipped."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def point_link(link: Path, target_name: str) -> None:
    """Make a relative link point at a sibling, replacing it in one step."""
    if link.is_symlink() and os.readlink(link) == target_name:
        return
    temporary = link.with_name(link.name + ".tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target_name)
    temporary.rename(link)
    sync(link.parent)
