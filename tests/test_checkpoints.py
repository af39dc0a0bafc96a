"""Which round is meant, what a run inherits from it, and what it gets a copy of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ssd_loop import checkpoints, composition, durable, store
from ssd_loop.checkpoints import changes, check_base, check_origin, hand_over, inherited, locate, origin_of
from ssd_loop.composition import Base, Composition
from ssd_loop.config_file import load
from ssd_loop.errors import BadArtifactError, ConfigError, StaleOutputError
from ssd_loop.place import RUN_FILE, Place
from ssd_loop.store import Input
from ssd_loop.training import WEIGHTS

PANELS = {"heldout": Input("h0"), "probe": Input("p0")}
DATA = {"prompts": "t0", "heldout": "h0", "probe": "p0"}
CONFIG = load(None, {"sample": {"temperature": 1.2}})
FILES = {
    "train": WEIGHTS,
    "evaluate": "report.json",
    "filter": "kept.parquet",
    "sweep": "sweep.json",
    "final": "final.json",
    "merge": "model.safetensors",
    "sample": "samples.parquet",
}


def stage(place: Place, n: int, name: str, inputs: dict[str, Input] | None = None) -> store.Finished:
    def work(out: Path) -> store.Metrics:
        (out / FILES[name]).write_text(f"{place.run} {n} {name}")
        return {}

    return store.step(
        place.stage(n, name),
        stage=name,
        round_index=n,
        version=1,
        settings={"of": place.run},
        inputs=inputs or {},
        work=work,
    )


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run `mine` of two rounds, seen from its own folder."""
    monkeypatch.chdir(tmp_path)
    place = Place(Path(), "mine")
    config = CONFIG.model_dump(mode="json", exclude={"rounds"})
    about = {"config": config, "data": DATA, "engine": "vllm"}
    durable.write_sealed(place.folder / RUN_FILE, about)
    stage(place, 0, "evaluate", PANELS)
    terms = []
    for n in (0, 1, 2):
        if n:
            for name in ("sample", "filter"):
                stage(place, n, name)
            terms.append(composition.part_of(stage(place, n, "train")))
            stage(place, n, "merge")
            stage(place, n, "evaluate")
        base = Base("some/model", None, "some/model", "bfloat16", "c0ffee")
        settings = composition.settings_of(CONFIG, "vllm")
        content = Composition(base, "stochastic", tuple(terms), settings, DATA)
        composition.write(place.checkpoint(n), content)
    durable.point_link(place.weights / "best", "round_001")
    return Path()


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("checkpoints/mine/round_002", 2),
        ("checkpoints/mine/round_002/", 2),
        ("./checkpoints/mine/round_000", 0),
        ("checkpoints/mine/best", 1),
        ("mine@2", 2),
        ("mine@0", 0),
        ("mine@round_001", 1),
        ("mine@best", 1),
    ],
)
def test_a_round_may_be_named_in_several_ways(root: Path, text: str, n: int) -> None:
    origin = locate(text, root)
    assert (origin.place, origin.round, origin.name) == (Place(Path(), "mine"), n, f"mine@{n}")
    assert len(origin.content.adapters) == n
    assert origin.is_in(root, "mine")
    assert not origin.is_in(root, "other")


def test_a_round_elsewhere_is_found_by_its_folder(root: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    shutil.copytree("checkpoints", away / "checkpoints")
    origin = locate(str(away / "checkpoints/mine/round_002"), root)
    assert origin.round == 2
    assert not origin.is_in(root, "mine")
    assert origin.identity() == locate("mine@2", root).identity()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("nowhere", ["'nowhere'", "RUN@ROUND"]),
        ("nowhere@1", ["'nowhere'", "mine"]),
        ("mine@7", ["'mine@7'", "0, 1, 2"]),
        ("mine@", ["'mine@'"]),
        ("rounds/mine/round_001", ["checkpoints/mine"]),
        ("checkpoints/mine", ["round_002"]),
        ("checkpoints/mine/round_001/adapter", ["name checkpoints/mine/round_001"]),
        ("checkpoints/mine/round_001/merged", ["name checkpoints/mine/round_001"]),
        ("elsewhere/round_001", ["checkpoints/RUN/round_NNN"]),
        ("checkpoints/empty/round_001", ["composition.json"]),
    ],
)
def test_what_is_no_round_is_refused_with_a_way_on(root: Path, text: str, parts: list[str]) -> None:
    for folder in ("elsewhere/round_001", "checkpoints/empty/round_001"):
        Path(folder).mkdir(parents=True)
    with pytest.raises(ConfigError) as error:
        locate(text, root)
    for part in parts:
        assert part in str(error.value)


def test_settings_come_from_the_run_else_from_the_checkpoint(root: Path) -> None:
    origin = locate("mine@2", root)
    assert inherited(origin, "fork", None, root)["sample"]["temperature"] == 1.2
    (Path("rounds/mine") / RUN_FILE).unlink()
    alone = load(None, {}, inherited(origin, "fork", None, root))
    assert alone.sample == CONFIG.sample
    assert alone.model.name == "some/model"


def test_a_fork_that_exists_goes_on_with_its_own_settings(root: Path) -> None:
    about = {"config": {"sample": {"temperature": 0.7}}, "parent": locate("mine@1", root).identity()}
    durable.write_sealed(Path("rounds/fork") / RUN_FILE, about)
    assert inherited(None, "fork", None, root) == about["config"]
    assert inherited(None, "fork", Path("some.yaml"), root) is None
    assert inherited(None, "mine", None, root) is None  # a run of its own is asked for in full


def test_a_fork_outlives_its_parent(root: Path) -> None:
    about = {"config": {}, "parent": locate("mine@1", root).identity(), "resumed_from": "mine@best"}
    durable.write_sealed(Path("rounds/fork") / RUN_FILE, about)
    assert origin_of("mine@best", "fork", root) is not None
    shutil.rmtree("checkpoints/mine")
    assert origin_of("mine@best", "fork", root) is None
    for text, run in (("mine@2", "fork"), ("mine@best", "other")):
        with pytest.raises(ConfigError):
            origin_of(text, run, root)


def test_changed_sampling_filters_and_training_are_listed(root: Path) -> None:
    flags = {
        "sample": {"temperature": 1.6},
        "filter": {"filters": ["unparsable"]},
        "train": {"start_from": "base"},
        "monitor": {"horizon": 3},
    }
    origin = locate("mine@1", root)
    config = load(None, flags, checkpoints.settings_of(origin))
    assert changes(origin, config, DATA, "vllm") == [
        "sample.temperature: 1.2 -> 1.6",
        "filter.filters: ['raw'] -> ['unparsable']",
        "train.start_from: previous -> base",
        "monitor.horizon: 10 -> 3",
    ]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"evaluate": {"limit": 3}}, "evaluate.limit: 60 -> 3"),
        ({"evaluate": {"panels": ["heldout"]}}, "evaluate.panels"),
        ({"evaluate": {"temperature": 0.5}}, "evaluate.temperature"),
        ({"sandbox": {"cpu_s": 9.0}}, "sandbox.cpu_s"),
        ({"merge": {"rounding": "nearest"}}, "merge.rounding"),
        ({"model": {"dtype": "float32"}}, "model.dtype"),
        ({"engine": {"name": "transformers"}}, "engine.name"),
    ],
)
def test_what_decides_the_measuring_may_not_change(root: Path, flags, named: str) -> None:
    origin = locate("mine@1", root)
    config = load(None, flags, checkpoints.settings_of(origin))
    with pytest.raises(StaleOutputError, match=named):
        changes(origin, config, DATA, "vllm")


def test_other_problems_in_a_panel_are_refused(root: Path) -> None:
    origin = locate("mine@1", root)
    with pytest.raises(StaleOutputError, match="panel heldout"):
        changes(origin, CONFIG, DATA | {"heldout": "h1"}, "vllm")


def test_another_engine_is_refused_though_the_setting_is_the_same(root: Path) -> None:
    with pytest.raises(StaleOutputError, match="the engine is transformers, not vllm"):
        changes(locate("mine@1", root), CONFIG, DATA, "transformers")


def test_other_prompts_are_listed(root: Path) -> None:
    assert changes(locate("mine@1", root), CONFIG, DATA | {"prompts": "t1"}, "vllm") == [
        "prompts: other tasks"
    ]


def test_a_checkpoint_alone_brings_no_baseline_to_compare_with(root: Path) -> None:
    shutil.rmtree("rounds/mine")
    origin = locate("mine@1", root)
    config = load(None, {"evaluate": {"limit": 3}}, checkpoints.settings_of(origin))
    other = DATA | {"heldout": "h1"}
    assert changes(origin, config, other, "transformers") == ["evaluate.limit: 60 -> 3"]


def test_a_baseline_without_run_json_is_still_compared_with(root: Path) -> None:
    (Path("rounds/mine") / RUN_FILE).unlink()
    origin = locate("mine@1", root)
    config = load(None, {"evaluate": {"limit": 3}}, checkpoints.settings_of(origin))
    with pytest.raises(StaleOutputError, match=r"evaluate\.limit: 60 -> 3"):
        changes(origin, config, DATA, "vllm")


def test_checkpoints_may_be_a_link_to_a_larger_disk(root: Path, tmp_path: Path) -> None:
    shutil.move("checkpoints", tmp_path / "large")
    Path("checkpoints").symlink_to(tmp_path / "large")
    there = str(tmp_path / "checkpoints/mine/round_002")
    for text in ("mine@2", "checkpoints/mine/round_002", "mine@best", there):
        origin = locate(text, root)
        assert origin.place == Place(Path(), "mine")
        assert origin.is_in(root, "mine")


def copied(place: Place) -> set[str]:
    names = set()
    for top in (place.folder, place.weights):
        names |= {path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file()}
    return {name for name in names if not name.endswith("manifest.json")}


def test_a_fork_gets_baseline_reports_adapters_and_compositions(root: Path) -> None:
    to = Place(root, "fork")
    hand_over(locate("mine@2", root), to, accumulates=False, decodes_alike=False)
    assert copied(to) == {
        "round_000/evaluate/report.json",
        "round_000/composition.json",
        "round_001/evaluate/report.json",
        "round_001/adapter/adapter_model.safetensors",
        "round_001/composition.json",
        "round_002/evaluate/report.json",
        "round_002/adapter/adapter_model.safetensors",
        "round_002/composition.json",
        "round_002/merged/model.safetensors",
    }
    for n in (1, 2):
        assert composition.adapters_of(to.checkpoint(n), composition.read(to.checkpoint(n)))
    hand_over(locate("mine@2", root), to, accumulates=True, decodes_alike=False)  # goes on where it was
    assert {"round_001/filter/kept.parquet", "round_002/filter/kept.parquet"} <= copied(to)


def test_a_fork_that_decodes_alike_gets_what_was_measured_of_the_base_alone(root: Path) -> None:
    for n in (0, 2):
        for name in ("sweep", "final"):
            stage(Place(root, "mine"), n, name)
    for to, alike in (("other", False), ("fork", True)):
        hand_over(locate("mine@2", root), Place(root, to), accumulates=False, decodes_alike=alike)
    measured = {"round_000/sweep/sweep.json", "round_000/final/final.json"}
    assert copied(Place(root, "fork")) - copied(Place(root, "other")) == measured


def test_accumulating_needs_the_samples_of_all_rounds(root: Path) -> None:
    shutil.rmtree("rounds/mine/round_001/filter")
    with pytest.raises(ConfigError, match=r"round 1 .*data_policy to replace"):
        checkpoints.check_kept(Place(root, "mine"), 2)
    checkpoints.check_kept(Place(root, "mine"), 0)


@pytest.mark.parametrize(
    "file",
    [
        "checkpoints/mine/round_001/adapter/adapter_model.safetensors",
        "rounds/mine/round_000/evaluate/report.json",
    ],
)
def test_a_flipped_bit_is_found_before_it_is_copied(root: Path, file: str) -> None:
    path = Path(file)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(BadArtifactError, match=file):
        hand_over(locate("mine@2", root), Place(root, "fork"), accumulates=False, decodes_alike=False)


def test_a_missing_adapter_is_named(root: Path) -> None:
    shutil.rmtree("checkpoints/mine/round_001/adapter")
    with pytest.raises(BadArtifactError, match=r"round_001/adapter is missing"):
        hand_over(locate("mine@2", root), Place(root, "fork"), accumulates=False, decodes_alike=False)


def test_a_pruned_model_is_not_copied(root: Path) -> None:
    merged = store.finished(Path("checkpoints/mine/round_002/merged"))
    assert merged is not None
    store.prune(merged, ["model.safetensors"])
    hand_over(locate("mine@2", root), Place(root, "fork"), accumulates=False, decodes_alike=False)
    assert not Path("checkpoints/fork/round_002/merged").exists()


def test_another_run_in_that_place_is_not_overwritten(root: Path) -> None:
    stage(Place(root, "fork"), 0, "evaluate")
    with pytest.raises(StaleOutputError, match="choose a new --run"):
        hand_over(locate("mine@2", root), Place(root, "fork"), accumulates=False, decodes_alike=False)


def test_a_run_of_another_origin_is_refused(root: Path) -> None:
    origin = locate("mine@2", root)
    check_origin({"parent": origin.identity()}, origin, "fork")
    for about, began in (
        ({"parent": locate("mine@1", root).identity()}, "from mine@1"),
        ({}, "from its base model"),
    ):
        with pytest.raises(StaleOutputError, match=began):
            check_origin(about, origin, "fork")


def test_another_base_is_refused(root: Path) -> None:
    origin = locate("mine@2", root)
    check_base(origin, "c0ffee", "some/model")
    with pytest.raises(ConfigError, match="other/model is not the model"):
        check_base(origin, "decaf", "other/model")
