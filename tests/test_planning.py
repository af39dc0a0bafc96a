"""What a run will cost: the arithmetic by hand, and a real calibration against a real run on a tiny model."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ssd_loop import costs, planning
from ssd_loop.config import RunConfig
from ssd_loop.config_file import load
from ssd_loop.costs import ModelSize, Work
from ssd_loop.errors import ConfigError
from ssd_loop.planning import Amounts, Calibration, Drawn, Trained
from tests.runs import ssd_loop, tiny_config

SIZE = ModelSize(matmul=1000, adapter=100)
FOUND = Calibration(
    engine_start_s=20.0,
    imports_s=5.0,
    sampled=Drawn(10, Work(seconds=4.0, busy_seconds=3.0, prompt_tokens=100, drawn_tokens=50)),
    filter_s=1.0,
    kept_share=0.5,
    trained=Trained(8, Work(seconds=2.0, busy_seconds=2.0, trained_prompt_tokens=80, trained_tokens=40), 3.0),
    merge_s=6.0,
    gate_s=7.0,
    load_s=1.5,
    evaluated=Drawn(10, Work(seconds=5.0, busy_seconds=4.0, prompt_tokens=200, drawn_tokens=30)),
    scored=Work(seconds=2.0, busy_seconds=2.0, scored_tokens=64),
)
AMOUNTS = Amounts(prompts=40, human=3, panels=20, probe=12)


def config(**sections: Any) -> RunConfig:
    return RunConfig.model_validate({"rounds": 2, "train": {"probe_every": 0}, **sections})


def test_every_stage_of_every_round_by_hand() -> None:
    works = planning.multiplied(config(), FOUND, AMOUNTS, SIZE)
    seconds = {key: work.seconds for key, work in works.items()}
    assert seconds == pytest.approx(
        {
            (0, "evaluate"): 20 + 4 * 10 + 2,
            (1, "sample"): 16,
            (1, "filter"): 4,
            (1, "train"): 5 + 3 + 20 / 8 * 2,
            (1, "merge"): 13,
            (1, "evaluate"): 1.5 + 10 + 2,
            (2, "sample"): 16,
            (2, "filter"): 4,
            (2, "train"): 3 + 20 / 8 * 2,
            (2, "merge"): 13,
            (2, "evaluate"): 1.5 + 10 + 2,
        }
    )
    assert works[1, "sample"].prompt_tokens == 400
    assert works[0, "evaluate"].drawn_tokens == 240
    assert works[2, "evaluate"].scored_tokens == 64
    assert works[1, "train"].trained_tokens == 100
    assert works[1, "train"].busy_seconds == pytest.approx(5)


def test_probes_inside_training_take_their_share_of_operations() -> None:
    """3 steps of 8 rows, a probe after each of the first two pairs of steps at most."""
    trained = config(train={"probe_every": 2, "batch_size": 8}).train
    plain = config(train={"probe_every": 0, "batch_size": 8}).train
    with_probes, without = (
        planning.training_work(settings, FOUND, 20, AMOUNTS, SIZE) for settings in (trained, plain)
    )
    per_operation = 2.0 / (120 * (4 * 1000 + 6 * 100))
    assert with_probes.seconds - without.seconds == pytest.approx(1 * 12 * 2 * 1000 * per_operation)
    assert with_probes.trained_tokens == without.trained_tokens


def test_data_that_accumulate_take_longer_every_round() -> None:
    several = config(train={"data_policy": "accumulate", "probe_every": 0})
    assert [planning.rows_trained(several, FOUND, AMOUNTS, n) for n in (1, 2, 3)] == [20, 40, 60]
    same = config(train={"data_policy": "accumulate-subsample"})
    assert planning.rows_trained(same, FOUND, AMOUNTS, 3) == 20


def test_human_rows_are_as_many_as_there_are() -> None:
    assert planning.rows_trained(config(train={"human_share": 0.1}), FOUND, AMOUNTS, 1) == 20 + 2
    assert planning.rows_trained(config(train={"human_share": 0.5}), FOUND, AMOUNTS, 1) == 20 + 3


def test_passes_over_the_data_multiply_its_tokens() -> None:
    works = planning.multiplied(config(train={"epochs": 3, "probe_every": 0}), FOUND, AMOUNTS, SIZE)
    assert works[1, "train"].trained_tokens == 300


def test_samples_of_the_base_cost_another_change_of_weights() -> None:
    works = planning.multiplied(config(sample={"policy": "base"}), FOUND, AMOUNTS, SIZE)
    assert (works[1, "sample"].seconds, works[2, "sample"].seconds) == pytest.approx((16, 17.5))


def test_extra_trainings_are_of_the_first_round() -> None:
    works = planning.multiplied(config(monitor={"seed_trainings": 2}), FOUND, AMOUNTS, SIZE)
    extra = {key for key in works if key[1].startswith("seed_")}
    assert extra == {(1, "seed_01"), (1, "seed_02")}
    assert works[1, "seed_01"].seconds == pytest.approx(3 + 5 + 6 + 1.5 + 10 + 2)
    assert works[1, "seed_01"].trained_tokens == 100


def test_baselines_come_after_the_rounds() -> None:
    assert planning.afterwards(config(), FOUND, AMOUNTS) == {}
    asked = Amounts(prompts=40, human=0, panels=20, probe=0, swept=100, final=10)
    works = planning.afterwards(config(), FOUND, asked)
    assert {key: work.seconds for key, work in works.items()} == pytest.approx(
        {(0, "sweep"): 51.5, (0, "final"): 25, (2, "sweep"): 51.5, (2, "final"): 15}
    )


@pytest.mark.parametrize(("count", "found"), [(3, [1, 5, 8]), (10, list(range(10))), (99, list(range(10)))])
def test_what_is_calibrated_on_is_spread_over_everything(count: int, found: list[int]) -> None:
    assert planning.spread(range(10), count) == found


def test_bad_input_is_refused_before_anything_is_opened() -> None:
    wanted = config(model={"name": "no/such/folder/here"}, prompts={"source": "missing.jsonl"})
    with pytest.raises(ConfigError, match=r"missing\.jsonl"):
        planning.predict(wanted)


@pytest.fixture(scope="module")
def planned(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path
) -> tuple[Path, RunConfig, dict[str, Any], list[str]]:
    """A prediction for a tiny run, where it was made, and the files that it left in the temporary folder."""
    folder, temporary = tmp_path_factory.mktemp("plan"), tmp_path_factory.mktemp("temporary")
    path = tiny_config(folder, tiny_llama, "transformers", rounds=2, baselines={"temperatures": []})
    wanted = load(path, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(tempfile, "tempdir", str(temporary))
        found = planning.predict(wanted, price_per_device_hour=2.0)
    return folder, wanted, found, [path.name for path in temporary.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_prediction_starts_no_run_and_leaves_nothing(
    planned: tuple[Path, RunConfig, dict[str, Any], list[str]],
) -> None:
    folder, _, found, left = planned
    assert [entry.name for entry in folder.iterdir()] == ["tiny.yaml"]
    assert left == []
    json.dumps(found, allow_nan=False)


@pytest.mark.slow
def test_a_prediction_is_shown(planned: tuple[Path, RunConfig, dict[str, Any], list[str]]) -> None:
    text = io.StringIO()
    planning.show(planned[2], Console(file=text, width=150))
    for part in (
        "evaluate",
        "sample",
        "train",
        "merge",
        "total",
        "memory (",
        "disk (",
        "second looks",
        "round 2",
    ):
        assert part in text.getvalue()


@pytest.mark.slow
def test_a_run_needs_the_tokens_that_were_predicted(
    planned: tuple[Path, RunConfig, dict[str, Any], list[str]],
) -> None:
    folder, _, found, _ = planned
    done = ssd_loop("--config", "tiny.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    real = costs.ledger(costs.read(folder / "rounds/tiny"), price_per_device_hour=2.0)
    told = found["ledger"]
    assert set(told["stages"]) == set(real["stages"]) - {"monitor", "second_look"}
    for stage in ("sample", "train", "evaluate"):
        counts = [key for key in told["stages"][stage] if key.endswith("tokens") or key == "flops"]
        for count in counts:
            assert told["stages"][stage][count] == pytest.approx(real["stages"][stage][count], rel=0.3), count
    assert found["disk_bytes"]["checkpoints"] > 0
    assert 0 < told["total"]["money"] == pytest.approx(2.0 * told["total"]["device_hours"])
