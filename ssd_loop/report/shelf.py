"""What of a run can be read: finished stages and files that are as they were made, and what is not there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssd_loop import store
from ssd_loop.errors import BadArtifactError
from ssd_loop.figures import REPORT, read_report
from ssd_loop.monitors.decision import DECISION, Decision, read_decision
from ssd_loop.place import ONLY_WHERE_ASKED, RUN_FILE, STAGES, Place, existing_folders
from ssd_loop.records import Row, read_rows
from ssd_loop.report.status import spans
from ssd_loop.store import Finished, Metrics

USUAL = tuple(stage for stage in STAGES if stage not in ONLY_WHERE_ASKED)


@dataclass
class Shelf:
    """One run, of which anything may be missing.

    A file is read only if its bytes are those that its manifest names: then it is what the stage wrote.

    Attributes:
        about: What run.json says; empty where that cannot be read.
        stages: Finished stages by round and name.
        missing: One line for everything that is damaged, unfinished or not there.
    """

    place: Place
    about: dict[str, Any] = field(default_factory=dict)
    stages: dict[tuple[int, str], Finished] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    _whole: dict[Path, bool] = field(default_factory=dict)

    @property
    def start(self) -> int:
        """Rounds up to this one were handed over by another run."""
        start: int = self.about.get("start", 0)
        return start

    @property
    def measured(self) -> list[int]:
        """The rounds that were evaluated, in order."""
        return sorted(n for n, stage in self.stages if stage == "evaluate")

    def note(self, path: Path, what: str) -> None:
        """Add a line to what is missing, once."""
        line = f"{path.relative_to(self.place.root).as_posix()}: {what}"
        if line not in self.missing:
            self.missing.append(line)

    def file(self, n: int, stage: str, name: str) -> Path | None:
        """A file of a finished stage; None, and a line in `missing`, where it is not as it was made."""
        done = self.stages.get((n, stage))
        if done is None:
            return None
        path = done.path / name
        if path not in self._whole:
            reasons = [reason for _, reason in store.damages(done, only=[name])]
            for reason in reasons:
                self.note(path, reason)
            self._whole[path] = not reasons
        return path if self._whole[path] else None

    def has(self, stage: str, rounds: Sequence[int], *names: str) -> bool:
        """Whether these files of a stage are whole in all the rounds."""
        found = [self.file(n, stage, name) for n in rounds for name in names]  # every absence is noted
        return all(found)

    def rows(self, n: int, stage: str, name: str, kind: type[Row]) -> list[Row] | None:
        """The rows of a file."""
        path = self.file(n, stage, name)
        return read_rows(path, kind) if path else None

    def metrics(self, n: int, stage: str) -> Metrics:
        """What a stage's manifest says of it; nothing where it is not finished."""
        done = self.stages.get((n, stage))
        return done.manifest.metrics if done else {}

    def reports(self) -> dict[int, dict[str, Any]]:
        """The evaluation report of every measured round."""
        found: dict[int, dict[str, Any]] = {}
        for n in self.measured:
            if path := self.file(n, "evaluate", REPORT):
                with self.noting(path):
                    found[n] = read_report(path.parent)
        return found

    def decisions(self) -> list[Decision]:
        """What the monitors decided, in order of rounds."""
        found = []
        for n, stage in sorted(self.stages):
            if stage == "monitor" and (path := self.file(n, stage, DECISION)):
                with self.noting(path):
                    found.append(read_decision(path.parent))
        return found

    @contextmanager
    def noting(self, path: Path) -> Iterator[None]:
        """Note a stored thing that the version at hand cannot read, and go on."""
        try:
            yield
        except (BadArtifactError, KeyError, TypeError, ValueError) as error:
            said = str(error) if isinstance(error, BadArtifactError) else f"lacks {error}"
            self.note(path, f"cannot be read by this version ({said})")


def open_shelf(root: Path, run: str) -> Shelf:
    """What is there of a run.

    Args:
        root: Folder that holds ``rounds/`` and ``checkpoints/``.
        run: Its name.

    Raises:
        ConfigError: nothing is.
    """
    shelf = Shelf(existing_folders(root, run))
    place = shelf.place
    try:
        shelf.about = place.about() or {}
        if not shelf.about:
            shelf.note(place.folder / RUN_FILE, "is missing")
    except BadArtifactError:
        shelf.note(place.folder / RUN_FILE, "was altered or is torn, so settings and model are not told")
    for n in place.known_rounds():
        for stage in STAGES:
            _look(shelf, n, stage)
    absent: dict[tuple[str, ...], list[int]] = {}
    for n in range(max(place.known_rounds(), default=0) + 1):
        if names := _gaps(shelf, n):
            absent.setdefault(names, []).append(n)
    for names, rounds in absent.items():
        shelf.note(place.folder, f"round {spans(rounds)} has no {', '.join(names)}")
    if not shelf.stages:
        shelf.note(place.folder, "no stage is finished")
    return shelf


def _look(shelf: Shelf, n: int, stage: str) -> None:
    folder = shelf.place.stage(n, stage)
    if store.partial_of(folder).exists():
        shelf.note(folder, "is unfinished")
    try:
        done = store.finished(folder)
    except BadArtifactError:
        shelf.note(folder / store.MANIFEST, "is missing or was altered")
        return
    if done is None:
        return
    if (done.manifest.stage, done.manifest.round) != (stage, n):
        shelf.note(folder, f"holds {done.manifest.stage} of round {done.manifest.round}, and is misplaced")
        return
    shelf.stages[n, stage] = done


def _gaps(shelf: Shelf, n: int) -> tuple[str, ...]:
    """The stages that a round should have, and of which there is not even a beginning."""
    usual: tuple[str, ...] = USUAL if n else ("evaluate",)
    if 0 < n <= shelf.start:
        usual = ("train", "evaluate")  # all that a fork takes over
    if "cliff_step" in shelf.metrics(n, "train"):
        usual = ("sample", "filter", "train", "monitor")  # discarded inside training
    folders = {stage: shelf.place.stage(n, stage) for stage in usual}
    return tuple(
        s for s, folder in folders.items() if not (folder.exists() or store.partial_of(folder).exists())
    )
