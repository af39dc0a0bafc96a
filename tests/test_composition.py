"""A composition says what weights are, holds its own hash, and finds the adapters it names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import ssd_loop
from ssd_loop import composition, store
from ssd_loop.composition import COMPOSITION, Base, Composition, Part
from ssd_loop.config import RunConfig
from ssd_loop.config_file import load
from ssd_loop.errors import BadArtifactError, ConfigError
from ssd_loop.models import ResolvedModel
from ssd_loop.training import WEIGHTS

BASE = Base("some/model", None, "some/model", "bfloat16", "c0ffee")


def content(*parts: Part) -> Composition:
    return Composition(
        BASE, "stochastic", parts, composition.settings_of(RunConfig(), "transformers"), {"prompts": "p0"}
    )


def adapter(folder: Path, text: str = "weights") -> store.Finished:
    def work(out: Path) -> store.Metrics:
        (out / WEIGHTS).write_text(text)
        return {}

    return store.step(folder, stage="train", round_index=1, version=1, settings={}, inputs={}, work=work)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    part = composition.part_of(adapter(tmp_path / "round_001" / "adapter"), 0.5)
    assert part.path == "../round_001/adapter"
    composition.write(tmp_path / "round_001", content(part))
    assert composition.read(tmp_path / "round_001") == content(part)


def test_it_names_the_adapters_and_finds_them(tmp_path: Path) -> None:
    first, second = (adapter(tmp_path / f"round_00{n}" / "adapter", f"w{n}") for n in (1, 2))
    whole = content(composition.part_of(first), composition.part_of(second, 0.25))
    found = composition.adapters_of(tmp_path / "round_002", whole)
    assert found == [(first, 1.0), (second, 0.25)]


def test_a_missing_or_exchanged_adapter_is_named(tmp_path: Path) -> None:
    done = adapter(tmp_path / "round_001" / "adapter")
    part = composition.part_of(done)
    with pytest.raises(BadArtifactError, match=r"round_009/adapter is missing"):
        composition.adapters_of(tmp_path / "round_001", content(replace(part, path="../round_009/adapter")))
    with pytest.raises(BadArtifactError, match=r"round_001/adapter is not the adapter"):
        composition.adapters_of(tmp_path / "round_001", content(replace(part, sha256="0" * 64)))


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    composition.write(tmp_path, content())
    path = tmp_path / COMPOSITION
    raw = path.read_bytes()
    for at in range(0, len(raw), 7):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
        with pytest.raises(BadArtifactError):
            composition.read(tmp_path)


def test_a_folder_without_one_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint"):
        composition.read(tmp_path)


def test_the_same_weights_are_not_written_again(tmp_path: Path) -> None:
    composition.write(tmp_path, content())
    before = (tmp_path / COMPOSITION).read_bytes()
    composition.write(tmp_path, replace(content(), settings={"sample": {"temperature": 9.0}}))
    assert (tmp_path / COMPOSITION).read_bytes() == before
    composition.write(tmp_path, replace(content(), rounding="nearest"))
    assert (tmp_path / COMPOSITION).read_bytes() != before


def test_the_settings_make_the_same_run_again() -> None:
    flags = {"sample": {"temperature": 1.6}, "train": {"start_from": "base", "human_share": 0.2}}
    config = load(None, flags)
    again = load(None, {}, composition.settings_of(config, "vllm"))
    assert composition.settings_of(again, "vllm") == composition.settings_of(config, "vllm")
    assert again.train == config.train
    assert again.sample == config.sample


def test_nothing_in_it_belongs_to_a_machine(tmp_path: Path) -> None:
    config = load(
        None, {"model": {"name": str(tmp_path)}, "prompts": {"source": str(tmp_path / "mine.jsonl")}}
    )
    base = composition.describe_base(config, ResolvedModel(tmp_path, "model", "bfloat16"), "c0ffee")
    assert base.name is None
    text = json.dumps(composition.settings_of(config, "vllm"))
    assert str(tmp_path) not in text
    assert '"source": "mine.jsonl"' in text
    hub = load(None, {"model": {"name": "owner/model", "revision": "abc"}})
    base = composition.describe_base(hub, ResolvedModel(tmp_path, "owner/model", "bfloat16"), "c0ffee")
    assert (base.name, base.revision) == ("owner/model", "abc")


@pytest.mark.parametrize("recipe", sorted((Path(ssd_loop.__file__).parent.parent / "configs").glob("*.yaml")))
def test_the_settings_of_every_recipe_are_enough_to_go_on_with(recipe: Path) -> None:
    config = load(recipe, {})
    again = load(None, {}, composition.settings_of(config, "vllm"))
    assert again.prompts == config.prompts
    assert again.evaluate == config.evaluate
    assert again.engine.max_model_len == config.engine.max_model_len


def test_a_renamed_base_folder_is_the_same_base(tmp_path: Path) -> None:
    composition.write(tmp_path, content())
    before = (tmp_path / COMPOSITION).read_bytes()
    composition.write(tmp_path, replace(content(), base=replace(BASE, name=None, title="moved")))
    assert (tmp_path / COMPOSITION).read_bytes() == before
    composition.write(tmp_path, replace(content(), base=replace(BASE, content_hash="decaf")))
    assert (tmp_path / COMPOSITION).read_bytes() != before
