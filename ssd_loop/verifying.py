"""Is a run on disk what it was when it was made? Every file is hashed again, every folder is in its place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssd_loop import composition, durable, progress, store
from ssd_loop.composition import COMPOSITION
from ssd_loop.errors import BadArtifactError
from ssd_loop.exporting import CARD, is_whole
from ssd_loop.merging import WEIGHT_FILES
from ssd_loop.monitors.decision import read_decision
from ssd_loop.place import (
    BEST,
    CONTINUED,
    ONLY_WHERE_ASKED,
    ROUNDS,
    RUN_FILE,
    STAGES,
    Place,
    round_name,
    round_of,
)
from ssd_loop.store import Finished
from ssd_loop.training import WEIGHTS

# What lies beside the rounds: checked here, or logs that nothing depends on.
BESIDE_ROUNDS = {RUN_FILE, CONTINUED, store.LOCK, "events.jsonl", "costs.jsonl", "report.html", "wandb"}
COMPARISONS = "compare-*.html"  # of `report RUN --compare OTHER`
ALTERED = "was altered"
UNFINISHED = (".partial", ".tmp")  # work under way or cut short; nothing reads it as finished


@dataclass
class Findings:
    """What was found in a run.

    Attributes:
        damaged: Path and reason of everything that is not as it was made.
        stages: Finished folders.
        files: Files that were hashed.
        pruned: Files that were deleted on purpose.
        unfinished: Folders and files of interrupted work.
        is_only_begun: Whether the run was stopped before its run.json was written.
    """

    damaged: list[tuple[Path, str]] = field(default_factory=list)
    stages: int = 0
    files: int = 0
    pruned: int = 0
    unfinished: list[Path] = field(default_factory=list)
    is_only_begun: bool = False


def verify(place: Place) -> Findings:
    """Everything that is wrong with a run.

    What is found is looked for a second time: a run that is going on changes while it is read.
    """
    found = _look(place)
    if found.damaged:
        again = _look(place)
        again.damaged = [finding for finding in again.damaged if finding in found.damaged]
        return again
    return found


def _look(place: Place) -> Findings:
    found = Findings()
    start = _run_files(place, found)
    finished: dict[tuple[int, str], Finished] = {}
    tops = (place.folder, BESIDE_ROUNDS), (place.weights, {BEST})
    folders = [folder for top, beside in tops for folder in _rounds(top, beside, found)]
    with progress.task("verify", sum(1 for folder in folders for _ in folder.rglob("*")), "files") as task:
        for folder in folders:
            for n, stage, done in _stages(place, folder, found, task):
                finished[n, stage] = done
    if (place.folder / RUN_FILE).exists():  # else nobody knows where the run began
        found.damaged += _chain(place, finished, start)
        found.damaged += _gaps(place, finished, start)
    found.damaged += _compositions(place, found.is_only_begun)
    if (unsettled := _unsettled(place, finished)) is not None:
        found.unfinished.append(place.stage(unsettled, "monitor"))
    else:
        found.damaged += _best(place, finished)
    found.damaged += _cards(place, finished, unsettled)
    return found


def _run_files(place: Place, found: Findings) -> int:
    """Check run.json and the note of stops that were passed over; the round that the run started from."""
    for path in (place.folder / RUN_FILE, place.folder / CONTINUED):
        if path.is_file() and not _is_sealed(path):
            found.damaged.append((path, ALTERED))
    about = _about(place)
    found.is_only_begun = place.is_only_begun()
    if not (place.folder / RUN_FILE).exists() and not found.is_only_begun:
        found.damaged.append((place.folder / RUN_FILE, "is missing"))
    return about.get("start", 0) if about else 0


def _about(place: Place) -> dict[str, Any] | None:
    """What run.json says, if it can be believed."""
    try:
        return place.about()
    except BadArtifactError:
        return None


def _rounds(top: Path, beside: set[str], found: Findings) -> Iterator[Path]:
    """The round folders in one of a run's two folders; whatever else is there is foreign."""
    for path in sorted(top.iterdir()) if top.is_dir() else ():
        if path.is_dir() and not path.is_symlink() and round_of(path) is not None:
            yield path
        elif path.name.endswith(UNFINISHED):
            found.unfinished.append(path)
        elif path.name not in beside and not (top.parent.name == ROUNDS and path.match(COMPARISONS)):
            found.damaged.append((path, "is no part of a run"))


def _stages(
    place: Place, folder: Path, found: Findings, task: progress.Task
) -> Iterator[tuple[int, str, Finished]]:
    """Check what is in a round's folder; the finished stages that belong there."""
    n = round_of(folder)
    assert n is not None
    for path in sorted(folder.iterdir()):
        stage = next((stage for stage in STAGES if place.stage(n, stage) == path), None)
        if path.name.endswith(UNFINISHED):
            found.unfinished.append(path)
        elif stage is None or not path.is_dir():
            if not (folder.parent == place.weights and path.name == COMPOSITION):
                found.damaged.append((path, "is no part of a round"))
        elif done := _folder(path, n, stage, found, task):
            yield n, stage, done


def _folder(path: Path, n: int, stage: str, found: Findings, task: progress.Task) -> Finished | None:
    if not (path / store.MANIFEST).is_file():
        found.damaged.append((path, f"has no {store.MANIFEST}"))
        return None
    try:
        done = store.finished(path)
        assert done is not None
    except BadArtifactError:
        found.damaged.append((path / store.MANIFEST, ALTERED))
        return None
    try:
        absent = store.pruned(done)
    except BadArtifactError:
        found.damaged.append((path / store.PRUNED, ALTERED))
        absent = tuple(done.manifest.outputs)
    if (done.manifest.stage, done.manifest.round) != (stage, n):
        what = f"{done.manifest.stage} of round {done.manifest.round}"
        found.damaged.append((path, f"holds {what} and is misplaced"))
        return None
    found.stages += 1
    found.pruned += len(absent)
    found.files += len(done.manifest.outputs) - len(absent)
    for name, reason in store.damages(done, absent):
        found.damaged.append((path / name, reason))
    if absent and (stage != "merge" or not all(Path(name).match(WEIGHT_FILES) for name in absent)):
        found.damaged.append((path / store.PRUNED, "names files that are never pruned"))
    known = {*done.manifest.outputs, store.MANIFEST, store.PRUNED, *([CARD] if stage == "merge" else [])}
    for file in sorted(path.rglob("*")):
        task.advance()
        if file.name.endswith(UNFINISHED):
            found.unfinished.append(file)
        elif file.is_symlink() or (file.is_file() and file.relative_to(path).as_posix() not in known):
            found.damaged.append((file, "is foreign: no manifest names it"))
    return done


def _chain(place: Place, finished: dict[tuple[int, str], Finished], start: int) -> Iterator[tuple[Path, str]]:
    """Stages whose inputs are not the finished folders of this run."""
    manifests = {done.manifest_sha256: done.manifest.fingerprint for done in finished.values()}
    for (n, stage), done in sorted(finished.items()):
        if n <= start and n:
            continue  # handed over by another run, whose other stages are not here
        for name, source in done.manifest.inputs.items():
            if source.manifest_sha256 is None:
                continue
            if manifests.get(source.manifest_sha256) != source.fingerprint:
                yield place.stage(n, stage), f"was made from another {name} than the one that is here"


def _gaps(place: Place, finished: dict[tuple[int, str], Finished], start: int) -> Iterator[tuple[Path, str]]:
    """Stages that are not there although later ones are."""

    def discarded(n: int) -> bool:
        trained = finished.get((n, "train"))
        return trained is not None and "cliff_step" in trained.manifest.metrics

    order = [(0, "evaluate")]
    last = max((n for n, _ in finished), default=0)
    order += [
        (n, stage)
        for n in range(start + 1, last + 1)
        for stage in STAGES
        if stage not in ONLY_WHERE_ASKED and not (stage in ("merge", "evaluate") and discarded(n))
    ]
    newest = max((index for index, key in enumerate(order) if key in finished), default=-1)
    for n, stage in order[: newest + 1]:
        if (n, stage) not in finished and not place.stage(n, stage).exists():
            yield place.stage(n, stage), "is missing"


def _compositions(place: Place, is_only_begun: bool) -> Iterator[tuple[Path, str]]:
    """Compositions that were altered, or that name another base or adapters that are not here."""
    about = _about(place)
    base = about["base_model"]["content_hash"] if about else None
    for n in place.known_rounds():
        folder = place.checkpoint(n)
        path = folder / COMPOSITION
        if not path.is_file():
            if place.stage(n, "merge" if n else "evaluate").exists() and not is_only_begun:
                yield path, "is missing"
            continue
        try:
            content = composition.read(folder)
        except BadArtifactError:
            yield path, ALTERED
            continue
        if base not in (None, content.base.content_hash):
            yield path, f"names another base than {RUN_FILE}"
        merged = _finished(place.stage(n, "merge"))
        named = [_finished(composition.folder_of(folder, part)) for part in content.adapters]
        if merged and all(named) and composition.merged_from(merged) != {d.as_input for d in named if d}:
            yield path, f"does not name what {merged.path.name} was merged from"
        for part in content.adapters:
            adapter = composition.folder_of(folder, part)
            if not adapter.is_dir():
                yield adapter, f"is missing, and {folder.name}/{COMPOSITION} names it"
            elif _weights_hash(adapter) not in (None, part.sha256):
                yield adapter, f"is not the adapter that {folder.name}/{COMPOSITION} names"


def _weights_hash(adapter: Path) -> str | None:
    """What an adapter's manifest says of its weights; None if it cannot be believed."""
    done = _finished(adapter)
    return done.manifest.outputs.get(WEIGHTS, {}).get("sha256") if done else None


def _finished(folder: Path) -> Finished | None:
    """A finished folder; None also where its manifest cannot be believed, which is reported elsewhere."""
    try:
        return store.finished(folder)
    except BadArtifactError:
        return None


def _unsettled(place: Place, finished: dict[tuple[int, str], Finished]) -> int | None:
    """The last round decided on, if the run was stopped before its model card was written and `best` moved.

    Then nothing came after the decision, and `best` is where the decision before it put it.
    """
    decided = sorted(n for n, stage in finished if stage == "monitor")
    if not decided:
        return None
    last = decided[-1]
    if any(n > last or stage in ("sweep", "final") for n, stage in finished):
        return None
    try:
        bests = [read_decision(place.stage(n, "monitor")).best_round for n in decided[-2:]]
    except BadArtifactError:
        return None  # reported with its file
    link = place.weights / BEST
    there = os.readlink(link) if link.is_symlink() else None
    before = round_name(bests[0]) if len(bests) == 2 else None
    return last if there == before and there != round_name(bests[-1]) else None


def _cards(
    place: Place, finished: dict[tuple[int, str], Finished], unsettled: int | None
) -> Iterator[tuple[Path, str]]:
    """Model cards that were altered, belong to other weights, or are missing where a round was decided on."""
    for (n, stage), merged in finished.items():
        if stage != "merge":
            continue
        path = merged.path / CARD
        if path.is_file():
            if not is_whole(path, merged):
                yield path, f"{ALTERED} (running the run again writes it anew)"
        elif (n, "monitor") in finished and n != unsettled:
            yield path, "is missing (running the run again writes it)"


def _best(place: Place, finished: dict[tuple[int, str], Finished]) -> Iterator[tuple[Path, str]]:
    """Whether `best` points at the round that the last decision names."""
    link = place.weights / BEST
    decided = [n for n, stage in finished if stage == "monitor"]
    if not decided:
        return
    try:
        best = read_decision(place.stage(max(decided), "monitor")).best_round
    except BadArtifactError:
        return  # reported with its file
    if not link.is_symlink():
        yield link, "is missing (running the run again sets it)" if not link.exists() else "is no link"
    elif os.readlink(link) != round_name(best):
        yield link, f"points at {os.readlink(link)}, and the last decision names {round_name(best)}"
    elif not link.is_dir():
        yield link, "points at nothing"


def _is_sealed(path: Path) -> bool:
    """Whether a file that holds its own hash is as it was written."""
    try:
        durable.read_sealed(path, "")
    except BadArtifactError:
        return False
    return True
