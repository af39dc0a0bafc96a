"""Where a run keeps what: its two folders, and the names in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_loop import durable
from ssd_loop.errors import BadArtifactError, ConfigError

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ROUNDS, CHECKPOINTS = "rounds", "checkpoints"
RUN_FILE, EVENTS, CONTINUED, BEST = "run.json", "events.jsonl", "continued.json", "best"
SEEDS = tuple(f"seed_{number:02d}" for number in range(1, 9))  # extra trainings of a first round
STAGES = (
    "sample",
    "filter",
    "train",
    "merge",
    "evaluate",
    *SEEDS,
    "second_look",
    "monitor",
    "interpolate",
    "sweep",
    "final",
)
COMPLETES = "the command that began it completes it"
# By the settings, the decision rule, or a run's end.
ONLY_WHERE_ASKED = (*SEEDS, "second_look", "interpolate", "sweep", "final")
# Kept under checkpoints/, and their folder's name.
WEIGHT_STAGES = {"train": "adapter", "merge": "merged", "interpolate": "interpolated"}


@dataclass(frozen=True)
class Place:
    """One run below `root`, the folder that holds ``rounds/`` and ``checkpoints/``."""

    root: Path
    run: str

    @property
    def folder(self) -> Path:
        """What the rounds measured and sampled."""
        return self.root / ROUNDS / self.run

    @property
    def weights(self) -> Path:
        """Adapters and merged models."""
        return self.root / CHECKPOINTS / self.run

    @property
    def best(self) -> int | None:
        """The best round so far; None where nothing was decided yet."""
        link = self.weights / BEST
        return round_of(Path(link.readlink().name)) if link.is_symlink() else None

    def checkpoint(self, n: int) -> Path:
        """The folder of one round's weights."""
        return self.weights / round_name(n)

    def stage(self, n: int, stage: str) -> Path:
        """Where a stage publishes: weights under checkpoints/, everything else under rounds/."""
        top = self.weights if stage in WEIGHT_STAGES else self.folder
        return top / round_name(n) / WEIGHT_STAGES.get(stage, stage)

    def about(self) -> dict[str, Any] | None:
        """What the run was asked to be, from its run.json; None where there is no such run.

        Raises:
            BadArtifactError: the file is torn or was altered.
        """
        path = self.folder / RUN_FILE
        if not path.is_file():
            return None
        about, _ = durable.read_sealed(path, "restore it or choose another --run")
        if not isinstance(about.get("config"), dict):
            raise BadArtifactError(f"{path} is torn; restore it or choose another --run")
        return about

    def is_only_begun(self) -> bool:
        """Whether the run was stopped while it was begun: no run.json yet, nothing but what a fork copies."""
        own = ("sample", "second_look", "monitor", "sweep", "final")
        return not (self.folder / RUN_FILE).exists() and not any(
            self.stage(n, stage).exists() for n in self.known_rounds() for stage in own
        )

    def known_rounds(self) -> list[int]:
        """Every round that has a folder, in order."""
        tops = (self.folder, self.weights)
        found = {round_of(path) for top in tops for path in top.glob("round_*") if path.is_dir()}
        return sorted(n for n in found if n is not None)


def round_name(n: int) -> str:
    """The name of one round's folder."""
    return f"round_{n:03d}"


def round_of(path: Path) -> int | None:
    """The round whose folder this is, by its name."""
    digits = path.name.removeprefix("round_")
    return int(digits) if digits.isdigit() and round_name(int(digits)) == path.name else None


def run_names(root: Path) -> list[str]:
    """Names of the runs below ``rounds/``."""
    return sorted(path.parent.name for path in (root / ROUNDS).glob(f"*/{RUN_FILE}"))


def existing(root: Path, name: str) -> tuple[Place, dict[str, Any]]:
    """A run that is there, and what it was asked to be.

    Raises:
        ConfigError: there is no such run.
    """
    place = existing_folders(root, name)
    about = place.about()
    if about is None:
        if place.is_only_begun():
            raise ConfigError(f"run {name} was stopped while it was begun; {COMPLETES}")
        raise ConfigError(f"{place.folder} has no {RUN_FILE}; restore it, or start the run again")
    return place, about


def existing_folders(root: Path, name: str) -> Place:
    """A run of which at least something is there.

    Raises:
        ConfigError: there is no such run.
    """
    place = Place(root, name)
    if not RUN_NAME.fullmatch(name) or not (place.folder.is_dir() or place.weights.is_dir()):
        known = ", ".join(run_names(root)) or "none"
        raise ConfigError(f"there is no run {name!r} under {root / ROUNDS}; runs here: {known}")
    return place
