"""A machine that loses power: what is asked of the disk, in which order, and what is left of it then.

A real run is traced (`tests.crash.trace`), and its operations are replayed on two models of a disk. One keeps
only what was synced, files and folders alike. The other keeps every change of names but of file contents only
what was synced: the well-known empty file after a rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pytest

from ssd_loop.place import Place
from ssd_loop.verifying import verify
from tests.crash import full_run
from tests.crash.harness import Unbroken
from tests.runs import ssd_loop, tree

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TRACE = str(Path(__file__).parent / "trace.py")
Operation = tuple[Any, ...]
Keeps = Literal["synced", "names"]
INSTANTS, RESUMED = 150, 2


@dataclass
class Disk:
    """Files by the names that a running process sees, and by those that survive.

    Attributes:
        live: Path to file number, None for a folder, a text for a link; as the process sees it.
        kept: The same as it is after a power cut.
        contents: What is on disk of each file, by number.
    """

    keeps: Keeps
    live: dict[str, int | str | None] = field(default_factory=dict)
    kept: dict[str, int | str | None] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)

    def apply(self, operation: Operation) -> None:
        kind, path, *more = operation
        if kind == "sync":
            number = self.live.get(path)
            if not isinstance(number, int):  # created by a library, whose opening of files nobody sees
                number = self._new(path)
            self.contents[number] = more[0]
        elif kind == "create":
            self._new(path)
        elif kind == "mkdir":
            self.live.setdefault(path, None)
            if "/" not in path:  # the two folders of all runs
                self.kept[path] = None
        elif kind == "symlink":
            self.live[path] = more[0]
        elif kind in ("remove", "rmdir"):
            self._drop(self.live, path)
        elif kind == "rename":
            self._drop(self.live, more[0])
            for name in [name for name in self.live if name == path or name.startswith(f"{path}/")]:
                self.live[more[0] + name.removeprefix(path)] = self.live.pop(name)
        elif kind == "sync folder" and self.keeps == "synced":
            self._keep_folder(path)
        if self.keeps == "names":
            self.kept = self.live

    def _new(self, path: str) -> int:
        number = len(self.contents)
        self.contents[number] = b""
        self.live[path] = number
        return number

    def _keep_folder(self, folder: str) -> None:
        """The entries of a folder come on disk as they are; what lies in its folders stays as it was kept."""
        before = {name for name in self.kept if str(PurePosixPath(name).parent) == folder}
        now = {name: at for name, at in self.live.items() if str(PurePosixPath(name).parent) == folder}
        moved = {}
        for name in now:
            if now[name] is None and name not in before:  # a new folder, or one that was renamed
                moved |= self._inside(name)
        for name in list(self.kept):
            if (
                name.startswith(f"{folder}/")
                and f"{folder}/{name[len(folder) + 1 :].split('/')[0]}" not in now
            ):
                self.kept.pop(name)
        self.kept |= now | moved

    def _inside(self, folder: str) -> dict[str, int | str | None]:
        """What a renamed folder holds: entries that were synced under its former name."""
        found = {}
        for former in (f"{folder}.partial", folder):
            for name, at in self.kept.items():
                if name.startswith(f"{former}/"):
                    found[folder + name.removeprefix(former)] = at
        return found

    @staticmethod
    def _drop(names: dict[str, int | str | None], path: str) -> None:
        for name in [name for name in names if name == path or name.startswith(f"{path}/")]:
            del names[name]

    def write(self, folder: Path) -> None:
        """What is left, as files."""
        for name, at in sorted(self.kept.items()):
            path = folder / name
            if at is None and (path.parent == folder or path.parent.is_dir()):
                path.mkdir()
        for name, at in sorted(self.kept.items()):
            path = folder / name
            if not path.parent.is_dir():
                continue  # its folder did not survive
            if isinstance(at, str):
                path.symlink_to(at)
            elif isinstance(at, int):
                path.write_bytes(self.contents[at])


@pytest.fixture(scope="module")
def traced(on_transformers: Unbroken, tmp_path_factory: pytest.TempPathFactory) -> list[Operation]:
    folder = tmp_path_factory.mktemp("traced")
    full_run.write(folder, on_transformers.model, "transformers")
    done = ssd_loop(
        folder / "trace.pickle", "--config", "tiny.yaml", cwd=folder, program=[TRACE], timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert tree(folder) == on_transformers.files
    found = []
    with (folder / "trace.pickle").open("rb") as file:
        while True:
            try:
                found.append(pickle.load(file))
            except EOFError:
                return found


def test_data_come_before_the_manifest_that_before_the_name_and_the_folder_last(
    traced: list[Operation], on_transformers: Unbroken
) -> None:
    published = [at for at, (kind, path, *_) in enumerate(traced) if kind == "rename" and is_stage(path)]
    assert len(published) == len(on_transformers.spans)
    for at in published:
        _, partial, folder = traced[at]
        synced = {path: i for i, (kind, path, *_) in enumerate(traced[:at]) if kind == "sync"}
        content = {path: row[0] for kind, path, *row in traced[:at] if kind == "sync"}
        manifest = json.loads(content[f"{partial}/manifest.json.tmp"])
        named = next(
            i
            for i, row in enumerate(traced)
            if row[0] == "rename" and row[2:] == (f"{partial}/manifest.json",)
        )
        assert synced[f"{partial}/manifest.json.tmp"] < named < at
        for name, recorded in manifest["outputs"].items():
            path = f"{partial}/{name}"
            written = path if path in synced else f"{path}.tmp"  # written whole: synced before its own rename
            assert synced[written] < synced[f"{partial}/manifest.json.tmp"], name
            assert hashlib.sha256(content[written]).hexdigest() == recorded["sha256"], name
        assert traced[at - 1] == ("sync folder", partial)
        assert traced[at + 1] == ("sync folder", os.path.dirname(folder))


def is_stage(path: str) -> bool:
    """Whether a folder of this name becomes a stage's."""
    return path.endswith(".partial") and "/round_" in path


@pytest.mark.parametrize("keeps", ["synced", "names"])
def test_power_may_fail_at_any_instant(
    traced: list[Operation], on_transformers: Unbroken, tmp_path: Path, keeps: Keeps
) -> None:
    rng = random.Random(keeps)
    instants = sorted(rng.sample(range(1, len(traced)), INSTANTS))
    resumed = set(rng.sample(instants, RESUMED))
    disk = Disk(keeps)
    for at, operation in enumerate(traced, 1):
        disk.apply(operation)
        if at not in instants:
            continue
        folder = tmp_path / str(at)
        folder.mkdir()
        disk.write(folder)
        place = Place(folder, "tiny")
        damaged = verify(place).damaged if place.folder.is_dir() else []
        assert damaged == [], (at, operation[:2])
        if at in resumed:
            full_run.write(folder, on_transformers.model, "transformers")
            done = ssd_loop("--config", "tiny.yaml", cwd=folder, timeout=900)
            assert done.returncode == 0, (at, operation[:2], done.stderr)
            assert tree(folder) == on_transformers.files
        shutil.rmtree(folder)
    print(f"{keeps}: {len(traced)} operations, power cut at {len(instants)} of them", file=sys.stderr)
