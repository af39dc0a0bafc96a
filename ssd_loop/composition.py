"""`composition.json`: what a round's weights are, the base plus which adapters, each by its hash.

It alone defines the weights, and with the adapters it names it is all that is needed to go on from a round:
it also holds the settings of the run and the name of the base, in no form that depends on a machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ssd_loop import durable, models, store
from ssd_loop.config import DataConfig, RunConfig, Section
from ssd_loop.errors import BadArtifactError, ConfigError
from ssd_loop.models import ResolvedModel
from ssd_loop.rounding import Rounding
from ssd_loop.store import Finished, Input
from ssd_loop.training import WEIGHTS

COMPOSITION = "composition.json"


@dataclass(frozen=True)
class Base:
    """The model that the adapters are added to.

    Attributes:
        name: Packaged name or Hub id; None for a folder, whose place means nothing elsewhere.
        revision: Commit or branch of a Hub id.
        title: What people call it.
        dtype: The dtype that it is stored in and that the sum is rounded to.
        content_hash: `models.content_hash` of its folder.
    """

    name: str | None
    revision: str | None
    title: str
    dtype: str
    content_hash: str


@dataclass(frozen=True)
class Part:
    """One adapter in the sum.

    Attributes:
        path: Its folder, relative to the composition's own.
        sha256: Hash of its weights.
        weight: What its change is multiplied by.
    """

    path: str
    sha256: str
    weight: float = 1.0


@dataclass(frozen=True)
class Composition:
    """What defines a round's weights, and what the run was asked to do.

    Attributes:
        base: The pristine base.
        rounding: How the sum is rounded.
        adapters: In the order in which they are added.
        settings: What the run was asked to do, by section: `settings_of`.
        data: Fingerprints of the prompts and of every panel, by name.
    """

    base: Base
    rounding: Rounding
    adapters: tuple[Part, ...]
    settings: Mapping[str, Any]
    data: Mapping[str, str] = field(default_factory=dict)

    def weights(self) -> dict[str, Any]:
        """What decides the weights, and nothing else."""
        parts = [(part.sha256, part.weight) for part in self.adapters]
        base = [self.base.content_hash, self.base.dtype]
        return {"base": base, "rounding": self.rounding, "adapters": parts}


def describe_base(config: RunConfig, base: ResolvedModel, content_hash: str) -> Base:
    """How compositions name the base of a run."""
    is_folder = models.at_home(config.model.name).is_dir()
    name, revision = (None, None) if is_folder else (config.model.name, config.model.revision)
    return Base(name, revision, base.title, base.dtype, content_hash)


def part_of(adapter: Finished, weight: float = 1.0) -> Part:
    """How a composition names a finished adapter of its own run."""
    path = f"../{adapter.path.parent.name}/{adapter.path.name}"
    return Part(path, adapter.manifest.outputs[WEIGHTS]["sha256"], weight)


def settings_of(config: RunConfig, engine: str) -> dict[str, Any]:
    """What a run was asked to do, in a form that means the same on another machine.

    That is every setting that changes results, the engine by its name, where tasks come from (files by
    their name alone), and the two speed settings that other settings are checked against.

    Args:
        config: The run's settings.
        engine: The engine that draws.
    """
    # Baselines are measured of weights; they decide nothing about them.
    sections = {name: getattr(config, name) for name in RunConfig.model_fields if name != "baselines"}
    found = {name: value.result_settings() for name, value in sections.items() if isinstance(value, Section)}
    found["prompts"] = _portable(config.prompts)
    found["evaluate"]["sources"] = {name: _portable(data) for name, data in config.evaluate.sources.items()}
    found["train"]["micro_batch_size"] = config.train.micro_batch_size
    found["engine"] |= {"name": engine, "max_model_len": config.engine.max_model_len}
    return found


def _portable(data: DataConfig) -> dict[str, Any]:
    """Where tasks come from, without this machine's folders."""
    settings = data.model_dump(mode="json")
    path = models.at_home(data.source)
    if path.is_absolute() or path.exists():
        settings["source"] = path.name
    return settings


def write(round_folder: Path, content: Composition) -> None:
    """Write a round's composition; one that says the same weights stays as it is."""
    if (round_folder / COMPOSITION).is_file():
        old = read(round_folder)
        if old.weights() == content.weights():
            return
    durable.write_sealed(round_folder / COMPOSITION, asdict(content))


def read(round_folder: Path) -> Composition:
    """A round's composition.

    Raises:
        ConfigError: the folder holds none.
        BadArtifactError: it was altered.
    """
    path = round_folder / COMPOSITION
    if not path.is_file():
        raise ConfigError(f"{round_folder} is no checkpoint: it has no {COMPOSITION}; name a round's folder")
    data, _ = durable.read_sealed(path, "restore it from a copy")
    try:
        parts = tuple(Part(**part) for part in data.pop("adapters"))
        return Composition(base=Base(**data.pop("base")), adapters=parts, **data)
    except (KeyError, TypeError, AttributeError):
        raise BadArtifactError(f"{path} is torn; restore it from a copy") from None


def adapters_of(round_folder: Path, content: Composition) -> list[tuple[Finished, float]]:
    """The finished adapters that a composition names, with their weights in the sum.

    Raises:
        BadArtifactError: an adapter is missing, or is not the one that was merged.
    """
    return [(_adapter(round_folder, part), part.weight) for part in content.adapters]


def merged_from(merged: Finished) -> set[Input]:
    """The adapters that a finished merge was made from, as its manifest names them."""
    return {source for name, source in merged.manifest.inputs.items() if name.startswith("adapter_")}


def folder_of(round_folder: Path, part: Part) -> Path:
    """Where an adapter lies that a round's composition names."""
    return round_folder.parent / Path(part.path).parent.name / Path(part.path).name


def _adapter(round_folder: Path, part: Part) -> Finished:
    folder = folder_of(round_folder, part)
    adapter = store.finished(folder)
    if adapter is None:
        raise BadArtifactError(
            f"{folder} is missing, and {round_folder / COMPOSITION} names it; copy it beside the checkpoint"
        )
    if adapter.manifest.outputs.get(WEIGHTS, {}).get("sha256") != part.sha256:
        raise BadArtifactError(
            f"{folder} is not the adapter that {round_folder / COMPOSITION} names; restore that one"
        )
    return adapter
