"""A round as a place to start from: which one is meant, what a run inherits, and its own copy of it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_loop import composition, durable, store
from ssd_loop.composition import COMPOSITION, Composition
from ssd_loop.config import RunConfig
from ssd_loop.config_file import differences, load
from ssd_loop.errors import BadArtifactError, ConfigError, StaleOutputError
from ssd_loop.place import BEST, CHECKPOINTS, ROUNDS, Place, existing, round_name, round_of

RUN_AT_ROUND = re.compile(r"(?P<run>[A-Za-z0-9][A-Za-z0-9._-]*)@(?:round_)?(?P<round>\d{1,4}|best)")
# What a fork may do otherwise than its parent. Everything else decides how rounds are measured, and rounds
# that were measured otherwise cannot be compared with the baseline that the fork takes over.
PROMPTS = "prompts"
FREE_SECTIONS = (PROMPTS, "sample", "filter", "train", "monitor", "baselines")
BASELINES = ("sweep", "final")  # what decoding alone does for the base


@dataclass(frozen=True)
class Origin:
    """The round that a run starts from.

    Attributes:
        place: The run it belongs to, wherever that is kept.
        round: Its number.
        content: Its composition.
    """

    place: Place
    round: int
    content: Composition

    @property
    def name(self) -> str:
        """How people write it."""
        return f"{self.place.run}@{self.round}"

    def identity(self) -> dict[str, Any]:
        """What tells this origin from another, wherever either is kept."""
        weights = durable.sha256_json(self.content.weights())
        return {"run": self.place.run, "round": self.round, "weights_sha256": weights}

    def is_in(self, root: Path, run: str) -> bool:
        """Whether that run is the very one that this round belongs to."""
        here = Place(root, run).weights
        return self.place.run == run and self.place.weights.resolve() == here.resolve()

    def data(self) -> Mapping[str, str]:
        """Fingerprints of the prompts and panels of the run that this round belongs to."""
        about = self.place.about()
        return about.get("data", {}) if about else self.content.data

    def engine(self) -> str:
        """The engine that drew that run's samples."""
        about = self.place.about()
        name: str = about["engine"] if about else self.content.settings["engine"]["name"]
        return name


def origin_of(text: str | None, run: str | None, root: Path) -> Origin | None:
    """The round that a run was asked to start from, if any; none for a fork whose parent is gone.

    Args:
        text: What the user wrote after --resume-from, or None.
        run: The run's name, if it was given.
        root: The folder with ``rounds/`` and ``checkpoints/``.
    """
    if text is None:
        return None
    about = Place(root, run).about() if run else None
    try:
        return locate(text, root)
    except ConfigError:
        if about and about.get("resumed_from") == text:
            return None  # the fork has its own copy of all that it needs
        raise


def locate(text: str, root: Path) -> Origin:
    """The round that `text` names: a round's folder under a checkpoints/ folder, or RUN@ROUND.

    Args:
        text: What the user wrote.
        root: The folder with ``checkpoints/`` that RUN@ROUND is looked up in.

    Raises:
        ConfigError: there is no such round, or the folder is something else.
        BadArtifactError: its composition was altered.
    """
    if not Path(text).exists() and (match := RUN_AT_ROUND.fullmatch(text)):
        folder = _named(Place(root, match["run"]), match["round"], text)
    else:
        folder = Path(text)
    if not folder.is_dir():
        raise ConfigError(
            f"{text!r} is no round: name a folder such as {CHECKPOINTS}/default/round_002, or RUN@ROUND such "
            "as default@2"
        )
    if folder.name == BEST and folder.is_symlink():
        folder = folder.parent / os.readlink(folder)
    if round_of(folder) is None:
        hint = f"; name {folder.parent}" if round_of(folder.parent) is not None else ""
        raise ConfigError(f"{text!r} is no round's folder, which is called {round_name(2)} or so{hint}")
    # Links above the round are left as they are: checkpoints/ is often one, to a larger disk.
    folder = Path(os.path.abspath(folder))
    n, run, top = round_of(folder), folder.parent, folder.parent.parent
    if top.name == ROUNDS:
        raise ConfigError(
            f"{text!r} holds samples and reports, not weights; name the round under {CHECKPOINTS}/{run.name}"
        )
    if n is None or top.name != CHECKPOINTS:
        raise ConfigError(f"{text!r} does not lie at {CHECKPOINTS}/RUN/round_NNN; move it to such a place")
    # The current folder stays relative: no message and no file then names this machine's folders.
    here = Path() if top.parent.resolve() == root.resolve() else top.parent
    place = Place(here, run.name)
    return Origin(place, n, composition.read(place.checkpoint(n)))


def _named(place: Place, round_text: str, text: str) -> Path:
    if not place.weights.is_dir():
        existing(place.root, place.run)  # says which runs there are
    folder = place.weights / BEST if round_text == BEST else place.checkpoint(int(round_text))
    if not folder.is_dir():
        rounds = ", ".join(map(str, place.known_rounds())) or "none"
        raise ConfigError(f"{text!r}: run {place.run} has no such round; its rounds are {rounds}")
    return folder


def inherited(origin: Origin | None, run: str, config_file: Path | None, root: Path) -> dict[str, Any] | None:
    """The settings that a run goes on with where it is told no others; None for the defaults.

    A run that starts from a round has those of the run that the round belongs to. A fork that exists has
    its own, unless it is given a config file.
    """
    if origin is not None:
        return settings_of(origin)
    about = None if config_file else Place(root, run).about()
    config: dict[str, Any] | None = about["config"] if about and about.get("parent") else None
    return config


def settings_of(origin: Origin) -> dict[str, Any]:
    """The settings of the run that a round belongs to, as plain data.

    They come from its run.json, else from the checkpoint alone, which knows no folders and no devices.
    """
    if about := origin.place.about():
        config: dict[str, Any] = about["config"]
        return config
    base, settings = origin.content.base, {k: dict(v) for k, v in origin.content.settings.items()}
    if base.name is not None:
        settings.setdefault("model", {}).update(name=base.name, revision=base.revision)
    return settings


def changes(origin: Origin, config: RunConfig, data: Mapping[str, str], engine: str) -> list[str]:
    """What a fork does otherwise than its parent, one setting a line.

    Args:
        origin: Where it starts.
        config: What it is asked to do.
        data: Fingerprints of its prompts and panels.
        engine: The engine that draws.

    Raises:
        StaleOutputError: it would be measured otherwise than the baseline that it takes over.
    """
    old = load(None, {}, settings_of(origin)).model_dump(mode="json")
    changed = differences(old, config.model_dump(mode="json"))
    others = [name for name, known in origin.data().items() if data.get(name) != known]
    explained = any(line.startswith(f"{PROMPTS}.") for line in changed)
    listed = changed + (["prompts: other tasks"] if PROMPTS in others and not explained else [])
    if store.finished(origin.place.stage(0, "evaluate")) is None:
        return listed  # no baseline comes along: everything is measured anew
    refused = [line for line in changed if line.partition(".")[0] not in FREE_SECTIONS]
    refused += [f"the problems of panel {name} are others" for name in others if name != PROMPTS]
    refused += [f"the engine is {engine}, not {origin.engine()}"] if engine != origin.engine() else []
    if refused:
        raise StaleOutputError(
            f"a run that starts from {origin.name} is compared with that run's round 0 and must be measured "
            f"like it, but {'; '.join(refused)}; keep that, or start a new run without --resume-from"
        )
    return listed


def check_kept(place: Place, start: int) -> None:
    """Refuse to accumulate samples of earlier rounds that are not there.

    Raises:
        ConfigError: those of some round up to `start` are missing.
    """
    for n in range(1, start + 1):
        if store.finished(place.stage(n, "filter")) is None:
            raise ConfigError(
                f"train.data_policy accumulates samples, but those of round {n} are not in "
                f"{place.stage(n, 'filter')}; copy them there or set train.data_policy to replace"
            )


def hand_over(origin: Origin, to: Place, *, accumulates: bool, decodes_alike: bool) -> None:
    """Give another run its own copy of all that it needs: baseline, adapters, compositions, reports.

    Finished copies are kept, so a copy that was cut short goes on.

    Args:
        origin: Where the run starts.
        to: The run.
        accumulates: Whether it trains on the samples of earlier rounds too.
        decodes_alike: Whether it decodes the base in the very ways that its parent does, so that those
            measurements serve both.

    Raises:
        BadArtifactError: what is copied is missing or damaged.
    """
    parent = origin.place
    composition.adapters_of(parent.checkpoint(origin.round), origin.content)  # all of them are there
    stages = ["train", "evaluate", *(["filter"] if accumulates else [])]
    for n in range(origin.round + 1):
        for stage in (*stages, *(BASELINES if decodes_alike and n == 0 else ())):
            if done := store.finished(parent.stage(n, stage)):
                store.copy_finished(done, to.stage(n, stage))
        if (parent.checkpoint(n) / COMPOSITION).is_file():
            composition.write(to.checkpoint(n), composition.read(parent.checkpoint(n)))
    merged = store.finished(parent.stage(origin.round, "merge"))
    if merged is None or store.pruned(merged):
        return
    try:
        store.copy_finished(merged, to.stage(origin.round, "merge"))
    except BadArtifactError:
        if not store.pruned(merged):  # else its own run has pruned it meanwhile, and the fork merges anew
            raise


def check_origin(about: Mapping[str, Any], origin: Origin, run: str) -> None:
    """Refuse to go on with a run that exists and began elsewhere.

    Args:
        about: What run.json says.
        origin: Where it is asked to begin.
        run: Its name.

    Raises:
        StaleOutputError: it did.
    """
    parent = about.get("parent")
    if parent != origin.identity():
        began = f"from {parent['run']}@{parent['round']}" if parent else "from its base model"
        raise StaleOutputError(
            f"run {run} exists and began {began}, not from this {origin.name}; choose another --run"
        )


def check_base(origin: Origin, content_hash: str, name: str, flag: str = "--model.name") -> None:
    """Refuse another base model than the one whose adapters are added.

    Raises:
        ConfigError: it is another one.
    """
    if content_hash != origin.content.base.content_hash:
        raise ConfigError(
            f"model.name {name} is not the model that {origin.name} was trained from "
            f"({origin.content.base.title}): its files differ; give that one with {flag}"
        )
