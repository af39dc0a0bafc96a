"""What follows from a decision, on real tiny runs: second looks, stops, remedies, cliffs, `decide`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ssd_loop import composition, store
from ssd_loop.place import Place
from ssd_loop.records import Sample, read_rows
from tests import tiny
from tests.runs import DIGIT_DRAWS, digit_tasks, ssd_loop, tiny_config, tree

pytestmark = pytest.mark.slow

# A random model says 0 now and then. Trained hard on the answers that do, it says little else, which is wrong
# in every held-out problem. What else that does to it is tolerated, so that one monitor speaks and no guard.
TOLERATED = {
    "heldout_pass_at_1": 1.0,
    "heldout_coverage": 1.0,
    "reference_nll": 10.0,
    "fork_loss": 10.0,
    "lock_leakage": 1.0,
    "dead_share": 1.0,
}
STRICT = {"action": "stop", "margins": TOLERATED}
WILD = {"learning_rate": 0.03, "epochs": 6, "batch_size": 16, "micro_batch_size": 16, "probe_margin": 10.0}
PROBLEMS, SAMPLES, PROMPTS = 40, 8, 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("model"))


def configured(folder: Path, model: Path, **sections: Any) -> Path:
    """A config that trains on answers that are 0, and holds out problems whose answers are other digits."""
    others = [str(number % 9 + 1) for number in range(PROBLEMS)]
    tasks = digit_tasks(folder, {"train": ["0"] * PROMPTS, "heldout": others})
    more = {
        "rounds": 3,
        "prompts": {**tasks["train"], "limit": PROMPTS},
        "sample": DIGIT_DRAWS,
        "filter": {"filters": ["fails_tests", "duplicate"]},
        "train": WILD,
        "evaluate": {
            "panels": ["heldout"],
            "sources": {"heldout": tasks["heldout"]},
            "limit": PROBLEMS,
            "samples_per_problem": SAMPLES,
            "max_new_tokens": 4,
        },
        "monitor": STRICT,
        **sections,
    }
    return tiny_config(folder, model, "transformers", **more)


def decision(folder: Path, n: int) -> dict[str, Any]:
    path = folder / "rounds/tiny" / f"round_{n:03d}" / "monitor/decision.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A run that its monitors stopped after a second look."""
    folder = tmp_path_factory.mktemp("collapsed")
    configured(folder, model)
    stopped = ssd_loop("--config", "tiny.yaml", cwd=folder)
    assert stopped.returncode == 3, stopped.stderr
    return folder


def test_an_alarm_is_looked_at_twice_and_named(collapsed: Path) -> None:
    found = decision(collapsed, 1)
    assert (found["verdict"], found["kind"], found["look"]) == ("stop", "collapse", 2)
    assert found["attribution"] == "self-reinforcing error"
    assert found["monitors"]["wrong_agreement"]["alarm"]
    folder = collapsed / "rounds/tiny/round_001"
    first = read_rows(folder / "evaluate/samples.parquet", Sample)
    more = read_rows(folder / "second_look/samples.parquet", Sample)
    assert {row.sample_index for row in first} == set(range(SAMPLES))
    assert {row.sample_index for row in more} == set(range(SAMPLES, 4 * SAMPLES))
    assert not {row.seed for row in first} & {row.seed for row in more}


def test_a_stopped_run_stays_stopped_and_is_sound(collapsed: Path) -> None:
    before = tree(collapsed)
    again = ssd_loop("--config", "tiny.yaml", cwd=collapsed)
    assert again.returncode == 3
    assert "stopped by the monitors after round 1" in again.stderr.strip().splitlines()[-1]
    assert tree(collapsed) == before
    assert ssd_loop("verify", "tiny", cwd=collapsed).returncode == 0


def test_a_lost_second_look_comes_back_with_the_same_bytes(collapsed: Path) -> None:
    before = tree(collapsed)
    for stage in ("second_look", "monitor"):
        shutil.rmtree(collapsed / "rounds/tiny/round_001" / stage)
    assert ssd_loop("--config", "tiny.yaml", cwd=collapsed).returncode == 3
    assert tree(collapsed) == before


def test_decide_says_what_was_decided_and_what_other_margins_would_say(collapsed: Path) -> None:
    before = tree(collapsed)
    same = json.loads(ssd_loop("decide", "tiny", "--json", cwd=collapsed).stdout)
    assert same == [decision(collapsed, 1)]
    lenient = ssd_loop("decide", "tiny", "--json", "--monitor.margins", "wrong_agreement=0.9", cwd=collapsed)
    assert [one["verdict"] for one in json.loads(lenient.stdout)] == ["continue"]
    shown = ssd_loop("decide", "tiny", cwd=collapsed)
    assert shown.returncode == 0
    assert "stop (collapse)" in shown.stdout
    assert tree(collapsed) == before
    assert ssd_loop("decide", "nobody", cwd=collapsed).returncode == 2


def test_an_own_round_that_is_not_decided_on_is_no_start(collapsed: Path, tmp_path: Path) -> None:
    shutil.copytree(collapsed, tmp_path / "run", symlinks=True)
    shutil.rmtree(tmp_path / "run/rounds/tiny/round_001/monitor")
    refused = ssd_loop("--resume-from", "tiny@1", "--rounds", 2, cwd=tmp_path / "run")
    assert refused.returncode == 2
    assert "not decided on yet" in refused.stderr.strip().splitlines()[-1]


def test_accumulating_is_tried_once(tmp_path: Path, model: Path) -> None:
    configured(tmp_path, model, monitor={**STRICT, "remedy": "accumulate"})
    ended = ssd_loop("--config", "tiny.yaml", cwd=tmp_path)
    assert decision(tmp_path, 1)["verdict"] == "remedy"
    assert "remedy: accumulate" in ended.stderr
    place = Place(tmp_path, "tiny")
    trained = store.finished(place.stage(2, "train"))
    assert trained is not None
    assert {"remedy", "kept_001"} <= set(trained.manifest.inputs)
    before = store.finished(place.stage(1, "train"))
    assert before is not None
    assert trained.manifest.metrics["rows_sampled"] > before.manifest.metrics["rows_sampled"]
    assert decision(tmp_path, 2)["verdict"] != "remedy"
    assert ssd_loop("verify", "tiny", cwd=tmp_path).returncode == 0


def test_variants_of_the_prompts_are_asked_from_then_on(tmp_path: Path, model: Path) -> None:
    configured(tmp_path, model, monitor={**STRICT, "remedy": "variants"})
    ended = ssd_loop("--config", "tiny.yaml", "--rounds", 2, cwd=tmp_path)
    assert decision(tmp_path, 1)["verdict"] == "remedy"
    assert "remedy: variants" in ended.stderr
    place = Place(tmp_path, "tiny")
    keys = ((1, "sample"), (2, "sample"), (1, "monitor"))
    plain, drawn, decided = (store.finished(place.stage(*key)) for key in keys)
    assert plain is not None
    assert drawn is not None
    assert decided is not None
    assert drawn.manifest.inputs["remedy"] == decided.as_input
    assert drawn.manifest.inputs["prompts"] != plain.manifest.inputs["prompts"]
    asked = [
        {row.prompt_id: row.prompt_token_ids for row in read_rows(done.path / "samples.parquet", Sample)}
        for done in (plain, drawn)
    ]
    assert asked[0].keys() == asked[1].keys()
    assert sum(asked[0][name] != ids for name, ids in asked[1].items()) > len(asked[0]) / 2
    before = tree(tmp_path)
    shutil.rmtree(place.stage(2, "sample"))
    ssd_loop("--config", "tiny.yaml", "--rounds", 2, cwd=tmp_path)
    assert tree(tmp_path) == before
    assert ssd_loop("verify", "tiny", cwd=tmp_path).returncode == 0


def test_interpolating_goes_on_from_halfway_back(tmp_path: Path, model: Path) -> None:
    configured(tmp_path, model, monitor={**STRICT, "remedy": "interpolate"})
    ended = ssd_loop("--config", "tiny.yaml", "--rounds", 2, cwd=tmp_path)
    assert ended.returncode in (0, 3), ended.stderr
    assert decision(tmp_path, 1)["verdict"] == "remedy"
    content = composition.read(tmp_path / "checkpoints/tiny/round_002")
    assert [part.weight for part in content.adapters] == [0.5, 1.0]
    place = Place(tmp_path, "tiny")
    halfway, drawn = (store.finished(place.stage(*key)) for key in ((1, "interpolate"), (2, "sample")))
    assert halfway is not None
    assert drawn is not None
    assert drawn.manifest.inputs["model"] == halfway.as_input
    before = tree(tmp_path)
    assert ssd_loop("--config", "tiny.yaml", "--rounds", 2, cwd=tmp_path).returncode == ended.returncode
    assert tree(tmp_path) == before
    assert ssd_loop("verify", "tiny", cwd=tmp_path).returncode == 0


def test_a_cliff_inside_training_discards_the_round_and_ends_on_the_best(tmp_path: Path, model: Path) -> None:
    train = {"learning_rate": 0.5, "probe_every": 1}
    configured(tmp_path, model, train=train)
    stopped = ssd_loop("--config", "tiny.yaml", cwd=tmp_path)
    assert stopped.returncode == 3, stopped.stderr
    rounds = sorted(path.name for path in (tmp_path / "rounds/tiny").glob("round_*"))
    last = int(rounds[-1][-3:])
    found = decision(tmp_path, last)
    assert (found["kind"], found["attribution"]) == ("guard", "cliff")
    adapter = tmp_path / "checkpoints/tiny" / rounds[-1] / "adapter"
    assert not (adapter / "adapter_model.safetensors").exists()
    probe = json.loads((adapter / "probe.json").read_text())
    assert probe[0]["rise"] == 0.0
    assert probe[-1]["rise"] is None or probe[-1]["rise"] > 0.1
    assert (tmp_path / "checkpoints/tiny/best").readlink().name == f"round_{found['best_round']:03d}"
    before = tree(tmp_path)
    # There are no weights to go on from, so this stop cannot be passed over.
    assert ssd_loop("--config", "tiny.yaml", "--continue-past-stop", cwd=tmp_path).returncode == 3
    assert tree(tmp_path) == before
    assert ssd_loop("verify", "tiny", cwd=tmp_path).returncode == 0
    replayed = json.loads(ssd_loop("decide", "tiny", "--json", cwd=tmp_path).stdout)
    assert replayed[-1] == found


def test_other_training_seeds_are_measured_where_they_are_paid_for(tmp_path: Path, model: Path) -> None:
    gentle = {"action": "warn", "seed_trainings": 2}
    configured(tmp_path, model, monitor=gentle, train={"learning_rate": 0.01}, rounds=2)
    done = ssd_loop("--config", "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "covered by 2 extra trainings" in done.stderr
    one, two = (tmp_path / "rounds/tiny/round_001" / name for name in ("seed_01", "seed_02"))
    assert (one / "scores.parquet").read_bytes() != (two / "scores.parquet").read_bytes()
    assert not (tmp_path / "rounds/tiny/round_002/seed_01").exists()
    noisy = decision(tmp_path, 2)["monitors"]["reference_nll"]["se"]
    configured(tmp_path, model, monitor={"action": "warn"}, train={"learning_rate": 0.01}, rounds=2)
    ssd_loop("--config", "tiny.yaml", "--run", "alone", cwd=tmp_path)
    alone = tmp_path / "rounds/alone/round_002/monitor/decision.json"
    assert json.loads(alone.read_text())["monitors"]["reference_nll"]["se"] < noisy
    assert ssd_loop("verify", "tiny", cwd=tmp_path).returncode == 0
