"""Finished-or-absent stage folders. The only module that renames.

A stage works in ``<folder>.partial/``. When it is done, its files are synced, the manifest is written and
synced, and one rename makes the folder appear whole. ``.partial/`` first records the fingerprint it works
for and may keep finished ``shards/``; everything else in it is thrown away by the next attempt.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ssd_loop import interrupts
from ssd_loop.durable import (
    json_bytes,
    make_folder,
    read_sealed,
    sha256_file,
    sha256_json,
    sync,
    write_json,
    write_sealed,
)
from ssd_loop.errors import BadArtifactError, RunLockedError, SsdLoopError, StaleOutputError

MANIFEST = "manifest.json"
PRUNED = "pruned.json"
IN_PROGRESS = "fingerprint.json"
SHARDS = "shards"
LOCK = ".lock"
Metrics = dict[str, Any]
Claim = dict[str, Any]

# Folders whose bytes this process wrote or has hashed: no file is hashed twice.
_trusted: set[Path] = set()


@dataclass(frozen=True)
class Input:
    """What a stage read: a finished stage, or plain content (then without a manifest)."""

    fingerprint: str
    manifest_sha256: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What a finished folder holds and what it was made from. No clock times, no paths."""

    stage: str
    round: int
    fingerprint: str
    inputs: Mapping[str, Input]
    outputs: Mapping[str, Mapping[str, Any]]
    metrics: Metrics = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The stored form, without its seal."""
        inputs = {
            name: {"fingerprint": i.fingerprint, "manifest_sha256": i.manifest_sha256}
            for name, i in self.inputs.items()
        }
        return {**vars(self), "inputs": inputs}


@dataclass(frozen=True)
class Finished:
    """A published stage folder."""

    path: Path
    manifest: Manifest
    manifest_sha256: str

    @property
    def as_input(self) -> Input:
        """How a later stage's manifest names this folder."""
        return Input(self.manifest.fingerprint, self.manifest_sha256)


def fingerprint(
    stage: str,
    round_index: int,
    version: int,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Input],
) -> str:
    """What a stage's result depends on, in one hash.

    Args:
        stage: Name of the stage.
        round_index: The round it belongs to; every seed derives from it.
        version: The stage's ``STAGE_VERSION``, raised when the meaning of its result changes.
        settings: The settings that change its result.
        inputs: Fingerprints of everything it reads.
    """
    read = {name: i.fingerprint for name, i in inputs.items()}
    return sha256_json(
        {
            "stage": stage,
            "round": round_index,
            "version": version,
            "settings": dict(settings),
            "inputs": read,
        }
    )


def finished(folder: Path) -> Finished | None:
    """The folder if it was published, None if it does not exist.

    Raises:
        BadArtifactError: the folder exists but its manifest is missing or altered.
    """
    if not folder.exists():
        return None
    path = folder / MANIFEST
    if not path.is_file():
        raise BadArtifactError(f"{folder} has no {MANIFEST}; move it away and run again")
    data, sha256 = read_sealed(path, f"move {folder} away and run again")
    try:
        inputs = {name: Input(**value) for name, value in data.pop("inputs").items()}
        manifest = Manifest(**data, inputs=inputs)
    except (KeyError, TypeError, AttributeError):
        raise BadArtifactError(f"{path} is torn; move {folder} away and run again") from None
    return Finished(folder, manifest, sha256)


def checked(stage: Finished) -> Path:
    """The folder, after its files were compared with the manifest (once per process).

    Raises:
        BadArtifactError: a file is missing or its content changed.
    """
    folder = stage.path.resolve()
    if folder not in _trusted:
        checked_in(stage, *stage.manifest.outputs)
        _trusted.add(folder)
    return stage.path


def checked_in(stage: Finished, *names: str) -> Path:
    """The folder, after these of its files were compared with the manifest.

    Raises:
        BadArtifactError: one is missing or its content changed.
    """
    for name, reason in damages(stage, only=names):
        raise BadArtifactError(f"{stage.path / name} {reason}; restore it or run again under a new --run")
    return stage.path


def partial_of(folder: Path) -> Path:
    """Where a folder is worked on until it is whole."""
    return folder.with_name(f"{folder.name}.partial")


def damages(
    stage: Finished, absent: Collection[str] = (), only: Collection[str] | None = None
) -> Iterator[tuple[str, str]]:
    """Each file that is not as the manifest says, and what is wrong with it.

    Args:
        stage: A published folder.
        absent: Names of files that may be missing.
        only: The files that are looked at, each of which should be there; all if left out.
    """
    outputs = stage.manifest.outputs
    for name in outputs if only is None else only:
        if name not in outputs:
            yield name, "was never written"
            continue
        expected = outputs[name]
        path = stage.path / name
        if not path.is_file():
            if name not in absent:
                yield name, "is missing"
        elif path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
            yield name, "was altered"


def step(
    folder: Path,
    *,
    stage: str,
    round_index: int,
    version: int,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Input],
    work: Callable[[Path], Metrics],
) -> Finished:
    """Run one stage, unless its finished folder is already there.

    Args:
        folder: Where the result is published.
        stage: Name of the stage.
        round_index: The round it belongs to.
        version: The stage's ``STAGE_VERSION``.
        settings: The settings that change its result.
        inputs: What it reads.
        work: Writes the result's files into the folder it is given and returns metrics.

    Raises:
        StaleOutputError: the folder, or an unfinished attempt, belongs to other settings or inputs.
        KeyboardInterrupt: a signal came meanwhile, even if the work did not end of it.
    """
    wanted = fingerprint(stage, round_index, version, settings, inputs)
    if done := finished(folder):
        if done.manifest.fingerprint != wanted or done.manifest.inputs != dict(inputs):
            raise StaleOutputError(_stale(folder, done.manifest, wanted, inputs))
        return done
    claim = _claim_of(wanted, inputs)
    partial = _begin(folder, claim)
    if (partial / MANIFEST).exists():
        return _publish(partial, folder)
    metrics = work(partial)
    interrupts.heed()  # what swallowed one may have cut its work short
    outputs = _outputs(partial)
    manifest = Manifest(stage, round_index, wanted, dict(inputs), outputs, metrics)
    write_sealed(partial / MANIFEST, manifest.to_json())
    done = _publish(partial, folder)
    _trusted.add(folder.resolve())  # this process wrote it
    return done


def _stale(folder: Path, old: Manifest, wanted: str, inputs: Mapping[str, Input]) -> str:
    names = [n for n in sorted({*inputs, *old.inputs}) if old.inputs.get(n) != inputs.get(n)]
    what = f"another input {', '.join(names)}" if names else f"other settings or version of stage {old.stage}"
    return (
        f"{folder} was made with {what}; go on with the old settings, choose a new --run, "
        "or move that folder away"
    )


def _claim_of(wanted: str, inputs: Mapping[str, Input]) -> Claim:
    """What an attempt works for: the fingerprint, and the very bytes of its inputs."""
    return {"fingerprint": wanted, "inputs": {n: i.manifest_sha256 for n, i in inputs.items()}}


def _begin(folder: Path, claim: Claim) -> Path:
    partial = partial_of(folder)
    make_folder(partial)
    mark = partial / IN_PROGRESS
    complete = _complete(partial)
    old = complete or _claimed(mark)
    if old is not None and old != claim:
        raise StaleOutputError(
            f"{partial} was begun with other settings or inputs; go on with the old ones, choose a new "
            "--run, or delete that folder"
        )
    if complete:
        return partial
    for entry in partial.iterdir():
        if old is None or entry.name not in (IN_PROGRESS, SHARDS):
            _remove(entry)
    if old is None:
        write_json(mark, claim)
    return partial


def _claimed(mark: Path) -> Claim | None:
    try:
        claim = json.loads(mark.read_bytes())
    except (FileNotFoundError, ValueError):
        return None  # killed before anything of worth was in it
    return claim if isinstance(claim, dict) else None


def _complete(partial: Path) -> Claim | None:
    """What a result was made for that lacked only the rename when the last attempt died."""
    try:
        done = finished(partial)
    except BadArtifactError:
        return None
    return _claim_of(done.manifest.fingerprint, done.manifest.inputs) if done else None


def _outputs(partial: Path) -> dict[str, dict[str, Any]]:
    files = sorted(p for p in partial.rglob("*") if p.is_file())
    keep = [p for p in files if p.relative_to(partial).parts[0] not in (IN_PROGRESS, SHARDS)]
    for path in keep:
        sync(path)
    return {
        p.relative_to(partial).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in keep
    }


def _publish(partial: Path, folder: Path) -> Finished:
    _remove(partial / SHARDS)
    _remove(partial / IN_PROGRESS)
    for inner in (path for path in partial.rglob("*") if path.is_dir()):
        sync(inner)
    sync(partial)
    partial.rename(folder)
    sync(folder.parent)
    done = finished(folder)
    assert done is not None
    return done


def prune(stage: Finished, names: Collection[str]) -> None:
    """Delete some of a published folder's files and leave its manifest, and a note that says which.

    The note is on disk before the first file goes, so a missing file is never mistaken for damage. Pruning
    again deletes what an interrupted pruning left.
    """
    if not pruned(stage):
        write_json(stage.path / PRUNED, {"files": sorted(names)})
    for name in names:
        (stage.path / name).unlink(missing_ok=True)
    sync(stage.path)
    _trusted.discard(stage.path.resolve())


def pruned(stage: Finished) -> tuple[str, ...]:
    """Names of the files that were deleted on purpose; empty for a folder that is whole.

    Raises:
        BadArtifactError: the note that names them is torn.
    """
    note = stage.path / PRUNED
    if not note.exists():
        return ()
    try:
        names = json.loads(note.read_bytes())["files"]
        if json_bytes({"files": names}) != note.read_bytes() or not set(names) <= set(stage.manifest.outputs):
            raise ValueError(names)
    except (ValueError, KeyError, TypeError):
        raise BadArtifactError(f"{note} is torn; delete it if no file of {stage.path} is missing") from None
    return tuple(names)


def restore(stage: Finished, work: Callable[[Path], object]) -> None:
    """Make a pruned folder whole again.

    Args:
        stage: A published folder.
        work: Writes the pruned files again into the folder it is given.

    Raises:
        BadArtifactError: what was written is not what the manifest recorded.
    """
    names = pruned(stage)
    partial = partial_of(stage.path)
    _remove(partial)
    partial.mkdir()
    work(partial)
    for name in names:
        if sha256_file(partial / name) != stage.manifest.outputs[name]["sha256"]:
            raise BadArtifactError(
                f"{stage.path / name} was rebuilt and differs from its recorded hash: another machine or "
                "library version, or a changed base; to go on from weights built here, name a new --run"
            )
    for name in names:
        sync(partial / name)
        (partial / name).rename(stage.path / name)
    sync(stage.path)
    _remove(partial)
    (stage.path / PRUNED).unlink()


def copy_finished(stage: Finished, folder: Path) -> Finished:
    """Publish a copy of a finished folder, files and manifest alike; nothing is done where it is already.

    Raises:
        BadArtifactError: a file of the original is missing or its content changed.
        StaleOutputError: another finished folder is in that place.
    """
    if there := finished(folder):
        if there.manifest_sha256 != stage.manifest_sha256:
            raise StaleOutputError(
                f"{folder} is there already and is no copy of {stage.path}; choose a new --run"
            )
        return there
    partial = partial_of(folder)
    _remove(partial)
    hashes = {name: recorded["sha256"] for name, recorded in stage.manifest.outputs.items()}
    make_folder(partial)
    for name, sha256 in {**hashes, MANIFEST: stage.manifest_sha256}.items():
        source, target = stage.path / name, partial / name
        make_folder(target.parent)
        if source.is_file():
            shutil.copyfile(source, target)
        # The copy is hashed, not the original: that finds damage of either.
        if not target.is_file() or sha256_file(target) != sha256:
            raise BadArtifactError(f"{source} is missing or was altered; restore it")
        sync(target)
    return _publish(partial, folder)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, that appears under its name when it is whole, or not at all."""
    partial = partial_of(folder)
    _remove(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        interrupts.heed()
    except BaseException:
        _remove(partial)
        raise
    for path in (*partial.iterdir(), partial):
        sync(path)
    partial.rename(folder)
    sync(folder.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def run_lock(run_folder: Path) -> Iterator[None]:
    """Hold a run for writing; the kernel lets go of it when the process dies.

    Raises:
        RunLockedError: another process holds it.
        SsdLoopError: the folder cannot be made or written.
    """
    lock = run_folder / LOCK
    made_parent = not run_folder.parent.exists()
    with _open_lock(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLockedError(
                f"run {run_folder.name} is being written by another process; wait for it or choose "
                "another --run"
            ) from None
        if not lock.exists() or not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            raise RunLockedError(f"run {run_folder.name} was just given up elsewhere; try again")
        try:
            yield
        finally:
            if [entry.name for entry in run_folder.iterdir()] == [LOCK]:
                lock.unlink()  # nothing was begun: leave nothing behind
                run_folder.rmdir()
                if made_parent:
                    with suppress(OSError):  # another run was begun in it
                        run_folder.parent.rmdir()


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written; nothing is left of the attempt.

    Raises:
        SsdLoopError: it cannot.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    probe = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SsdLoopError(
            f"cannot write {folder}: {error.strerror}; mend that or work in another folder"
        ) from None
    finally:
        for path in made:
            with suppress(OSError):  # never made, or another run was begun in it
                path.rmdir()


def _open_lock(lock: Path) -> IO[str]:
    try:
        make_folder(lock.parent)
        return lock.open("a")
    except OSError as error:
        raise SsdLoopError(
            f"cannot write {lock.parent}: {error.strerror}; mend that or work in another folder"
        ) from None
