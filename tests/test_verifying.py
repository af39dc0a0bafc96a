"""`verify` finds every changed, missing, foreign and misplaced thing in a run, and nothing in a sound one."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ssd_loop import composition, durable, exporting, store
from ssd_loop.cli import main
from ssd_loop.composition import Base, Composition
from ssd_loop.config import RunConfig
from ssd_loop.exporting import CARD
from ssd_loop.monitors.decision import DECISION
from ssd_loop.place import ONLY_WHERE_ASKED, RUN_FILE, STAGES, Place, round_name
from ssd_loop.store import Finished, Input, Metrics
from ssd_loop.training import WEIGHTS
from ssd_loop.verifying import verify
from tests.rows import quiet_decision
from tests.runs import damage

FILES = {
    "sample": "samples.parquet",
    "filter": "kept.parquet",
    "train": WEIGHTS,
    "merge": "model.safetensors",
    "evaluate": "report.json",
}
SETTINGS = composition.settings_of(RunConfig(), "transformers")


def stage(place: Place, n: int, name: str, inputs: dict[str, Input]) -> Finished:
    def work(out: Path) -> Metrics:
        if name == "monitor":
            decision = quiet_decision(n)
            durable.write_json(out / DECISION, decision.to_json())
        else:
            (out / FILES[name]).write_text(f"{n} {name} " * 5)
        return {}

    return store.step(
        place.stage(n, name), stage=name, round_index=n, version=1, settings={}, inputs=inputs, work=work
    )


def make(place: Place, rounds: int = 2) -> None:
    """A run with everything that a run has, made by the store itself."""
    base = {"content_hash": "c0ffee"}
    about = {"config": RunConfig().model_dump(mode="json"), "base_model": base}
    durable.write_sealed(place.folder / RUN_FILE, about)
    durable.append_jsonl(place.folder / "events.jsonl", {"a": 1})
    done = stage(place, 0, "evaluate", {"model": Input("c0ffee")})
    adapters: dict[str, Input] = {}
    parts: list[composition.Part] = []
    for n in range(rounds + 1):
        if n:
            for name in (stage for stage in STAGES if stage not in ONLY_WHERE_ASKED):
                merged = adapters if name == "merge" else {}
                done = stage(place, n, name, {"before": done.as_input, **merged})
                if name == "merge":
                    (done.path / CARD).write_text(exporting.sealed(f"# Round {n}\n", done))
                if name == "train":
                    parts.append(composition.part_of(done))
                    adapters[f"adapter_{n:03d}"] = done.as_input
        content = Composition(
            Base(None, None, "tiny", "bfloat16", "c0ffee"), "stochastic", tuple(parts), SETTINGS, {}
        )
        composition.write(place.checkpoint(n), content)
    durable.point_link(place.weights / "best", "round_000")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    made = Place(Path(), "mine")
    make(made)
    return made


def found(place: Place) -> dict[str, str]:
    return {path.as_posix(): reason for path, reason in verify(place).damaged}


def test_a_sound_run_has_no_findings(place: Place) -> None:
    result = verify(place)
    assert result.damaged == []
    assert (result.stages, result.files, result.pruned, result.unfinished) == (13, 13, 0, [])


def test_pruned_is_told_from_damaged(place: Place) -> None:
    merged = store.finished(place.stage(1, "merge"))
    assert merged is not None
    store.prune(merged, ["model.safetensors"])
    result = verify(place)
    assert result.damaged == []
    assert result.pruned == 1
    (merged.path / store.PRUNED).unlink()
    assert found(place) == {"checkpoints/mine/round_001/merged/model.safetensors": "is missing"}


def test_interrupted_work_is_no_damage(place: Place) -> None:
    (place.folder / "round_003" / "sample.partial").mkdir(parents=True)
    (place.folder / f"{RUN_FILE}.tmp").write_text("{")
    result = verify(place)
    assert result.damaged == []
    assert len(result.unfinished) == 2


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def regrown(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


CASES: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("rounds/mine/round_001/sample/samples.parquet", flip, "", "altered"),
    ("rounds/mine/round_001/sample/samples.parquet", os.remove, "", "missing"),
    ("rounds/mine/round_001/sample/manifest.json", flip, "", "altered"),
    ("rounds/mine/round_001/sample/manifest.json", regrown, "", "altered"),
    (
        "rounds/mine/round_001/sample/manifest.json",
        os.remove,
        "rounds/mine/round_001/sample",
        "manifest.json",
    ),
    ("rounds/mine/round_002/monitor/decision.json", flip, "", "altered"),
    ("checkpoints/mine/round_001/adapter/adapter_model.safetensors", flip, "", "altered"),
    ("checkpoints/mine/round_001/composition.json", flip, "", "altered"),
    ("checkpoints/mine/round_002/composition.json", os.remove, "", "missing"),
    ("rounds/mine/run.json", flip, "", "altered"),
    ("rounds/mine/run.json", regrown, "", "altered"),
    ("rounds/mine/run.json", os.remove, "", "missing"),
    ("checkpoints/mine/best", os.remove, "", "missing"),
    ("rounds/mine/round_001/filter", shutil.rmtree, "", "missing"),
    ("rounds/mine/round_000/evaluate", shutil.rmtree, "", "missing"),
    ("checkpoints/mine/round_001/adapter", shutil.rmtree, "", "missing"),
    ("rounds/mine/notes.txt", Path.touch, "", "no part"),
    ("rounds/mine/round_001/notes.txt", Path.touch, "", "no part"),
    ("rounds/mine/round_001/sample/notes.txt", Path.touch, "", "foreign"),
    ("checkpoints/mine/round_001/merged/extra.bin", Path.touch, "", "foreign"),
    ("checkpoints/mine/round_01", Path.mkdir, "", "no part"),
    ("rounds/mine/continued.json", Path.touch, "", "altered"),
    ("checkpoints/mine/round_001/merged/README.md", flip, "", "altered"),
    ("checkpoints/mine/round_001/merged/README.md", regrown, "", "altered"),
    ("checkpoints/mine/round_002/merged/README.md", os.remove, "", "missing"),
]


@pytest.mark.parametrize(
    ("path", "harm", "named", "reason"), CASES, ids=lambda value: getattr(value, "__name__", str(value))[:60]
)
def test_each_kind_of_harm_is_named(
    place: Place, path: str, harm: Callable[[Path], object], named: str, reason: str
) -> None:
    harm(Path(path))
    findings = found(place)
    assert (named or path) in findings
    assert reason in findings[named or path]


def test_a_misplaced_folder_is_named(place: Place) -> None:
    shutil.move("rounds/mine/round_001/sample", "rounds/mine/spare")
    shutil.move("rounds/mine/round_002/sample", "rounds/mine/round_001/sample")
    shutil.move("rounds/mine/spare", "rounds/mine/round_002/sample")
    findings = found(place)
    assert "sample of round 2" in findings["rounds/mine/round_001/sample"]
    assert "sample of round 1" in findings["rounds/mine/round_002/sample"]


def test_stages_of_another_run_do_not_pass(place: Place, tmp_path: Path) -> None:
    other = Place(Path(), "other")
    make(other)
    shutil.rmtree("rounds/mine/round_002/filter")
    done = stage(other, 3, "filter", {"before": Input("elsewhere", "0" * 64)})
    text = (done.path / "manifest.json").read_text()
    assert "elsewhere" in text
    stage(place, 2, "filter", {"before": Input("elsewhere", "0" * 64)})
    assert "another before" in found(place)["rounds/mine/round_002/filter"]


def test_best_must_be_what_the_last_decision_says(place: Place) -> None:
    durable.point_link(place.weights / "best", "round_002")
    assert "points at round_002" in found(place)["checkpoints/mine/best"]


def test_a_card_of_other_weights_is_noticed(place: Place) -> None:
    first, second = (place.stage(n, "merge") / CARD for n in (1, 2))
    shutil.copy(first, second)
    assert found(place) == {
        "checkpoints/mine/round_002/merged/README.md": "was altered (running the run again writes it anew)"
    }


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_instant_between_a_decision_and_what_follows_from_it_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Place(Path(), "mine")
    make(place, rounds)
    last = quiet_decision(rounds).to_json() | {"best_round": rounds}
    shutil.rmtree(place.stage(rounds, "monitor"))
    evaluated = store.finished(place.stage(rounds, "evaluate"))
    assert evaluated is not None
    (place.stage(rounds, "merge") / CARD).unlink()
    if rounds == 1:
        (place.weights / "best").unlink()

    def decide(out: Path) -> Metrics:
        durable.write_json(out / DECISION, last)
        return {}

    store.step(
        place.stage(rounds, "monitor"),
        stage="monitor",
        round_index=rounds,
        version=1,
        settings={},
        inputs={"before": evaluated.as_input},
        work=decide,
    )
    result = verify(place)
    assert (result.damaged, result.unfinished) == ([], [place.stage(rounds, "monitor")])
    durable.point_link(place.weights / "best", round_name(rounds))
    assert list(found(place)) == [f"checkpoints/mine/{round_name(rounds)}/merged/README.md"]


def test_a_fork_that_was_stopped_while_it_was_copied_is_no_damage(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Place(Path(), "other")
    for stage_name in ("evaluate", "train"):
        done = store.finished(place.stage(1, stage_name))
        assert done is not None
        store.copy_finished(done, other.stage(1, stage_name))
    baseline = store.finished(place.stage(0, "evaluate"))
    assert baseline is not None
    store.copy_finished(baseline, other.stage(0, "evaluate"))
    assert main(["verify", "other"]) == 0
    assert "the command that began it completes it" in capsys.readouterr().out
    assert main(["status", "other"]) == 2
    assert "the command that began it completes it" in capsys.readouterr().err
    flip(other.stage(1, "train") / WEIGHTS)
    assert main(["verify", "other"]) == 1


def test_a_composition_of_another_round_is_noticed(place: Place) -> None:
    shutil.copy("checkpoints/mine/round_001/composition.json", "checkpoints/mine/round_002/composition.json")
    assert "merged from" in found(place)["checkpoints/mine/round_002/composition.json"]


def test_a_note_of_pruning_does_not_hide_a_deleted_adapter(place: Place) -> None:
    adapter = store.finished(place.stage(1, "train"))
    assert adapter is not None
    store.prune(adapter, [WEIGHTS])
    assert "never pruned" in found(place)["checkpoints/mine/round_001/adapter/pruned.json"]


def test_a_swapped_adapter_is_noticed_though_its_own_manifest_holds(place: Place) -> None:
    shutil.rmtree("checkpoints/mine/round_001/adapter")
    other = Place(Path(), "other")
    make(other)
    shutil.rmtree("checkpoints/other/round_001/adapter")

    def work(out: Path) -> Metrics:
        (out / WEIGHTS).write_text("other weights")
        return {}

    store.step(
        place.stage(1, "train"), stage="train", round_index=1, version=1, settings={}, inputs={}, work=work
    )
    assert "is not the adapter" in found(place)["checkpoints/mine/round_001/adapter"]


def test_random_flips_cuts_deletions_and_swaps_are_all_found(place: Place) -> None:
    rng = random.Random(0)
    tops = (place.folder, place.weights)
    files = [p for top in tops for p in sorted(top.rglob("*")) if p.is_file() and p.name != "events.jsonl"]
    for _ in range(150):
        path, other = rng.sample(files, 2)
        before, other_before = path.read_bytes(), other.read_bytes()
        kind = rng.choice(["flip", "cut", "delete", "swap"])
        damage(path, other, kind, rng)
        assert verify(place).damaged or before == other_before, (kind, path, other)
        path.write_bytes(before)
        other.write_bytes(other_before)
    assert verify(place).damaged == []


def test_the_command_prints_a_line_for_each_finding(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "mine"]) == 0
    assert "13 stages and 13 files" in capsys.readouterr().out
    flip(Path("rounds/mine/round_001/sample/samples.parquet"))
    (place.folder / "notes.txt").touch()
    assert main(["verify", "mine"]) == 1
    captured = capsys.readouterr()
    assert sorted(captured.out.splitlines()) == [
        "rounds/mine/notes.txt: is no part of a run",
        "rounds/mine/round_001/sample/samples.parquet: was altered",
    ]
    assert "foreign: 2" in captured.err.splitlines()[-1]
    assert main(["verify", "nobody"]) == 2
