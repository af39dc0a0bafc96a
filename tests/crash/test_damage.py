"""Damage of every kind, in a real run with every kind of file: `verify` finds it, and no stage uses it."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from ssd_loop.durable import read_jsonl
from ssd_loop.place import EVENTS, Place
from ssd_loop.verifying import verify
from tests.crash.harness import Unbroken
from tests.runs import MAY_DIFFER, damage, ssd_loop

pytestmark = pytest.mark.slow

KINDS = ("flip", "cut", "delete", "swap")
TIMES = 500  # of each kind


@pytest.fixture(scope="module")
def folder(on_transformers: Unbroken, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(on_transformers.folder, copy, symlinks=True)
    return copy


def files(folder: Path) -> list[Path]:
    """Every file that a run depends on, manifests and cards included; logs and the report are not checked."""
    found = [path for top in ("rounds", "checkpoints") for path in sorted((folder / top).rglob("*"))]
    unchecked = MAY_DIFFER - {"run.json"}
    return [
        path
        for path in found
        if path.is_file()
        and not path.is_symlink()
        and path.name not in unchecked
        and path.suffix != ".html"
        and "best" not in path.parts
    ]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_verify_finds_five_hundred_of_each_kind_and_names_the_file(folder: Path, kind: str) -> None:
    rng = random.Random(kind)
    place, all_files = Place(folder, "tiny"), files(folder)
    stages = {path.parent.name for path in all_files}
    assert {"sweep", "final", "second_look", "merged", "adapter", "monitor"} <= stages
    assert {"pruned.json", "README.md", "manifest.json", "run.json"} <= {path.name for path in all_files}
    for _ in range(TIMES):
        path, other = rng.sample(all_files, 2)
        before, other_before = path.read_bytes(), other.read_bytes()
        damage(path, other, kind, rng)
        named = " ".join(str(found) for found, _ in verify(place).damaged)
        same = kind == "swap" and before == other_before
        # A damaged manifest or note speaks for its whole folder.
        assert same or str(path) in named or str(path.parent) in named, (kind, path, other, named)
        path.write_bytes(before)
        other.write_bytes(other_before)
    assert verify(place).damaged == []


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(folder, copy, symlinks=True)
    return copy


def stages_begun(run: Path) -> int:
    return len(read_jsonl(run / "rounds/tiny" / EVENTS))


# A file, and the rounds that are asked for: those that are there already, or one more.
USED = [
    ("checkpoints/tiny/round_001/adapter/adapter_model.safetensors", 3),
    ("checkpoints/tiny/round_001/adapter/manifest.json", 3),
    ("checkpoints/tiny/round_001/composition.json", 2),
    ("checkpoints/tiny/round_002/merged/model.safetensors", 3),
    ("rounds/tiny/round_000/evaluate/results.parquet", 3),
    ("rounds/tiny/round_001/evaluate/report.json", 3),
    ("rounds/tiny/round_001/filter/kept.parquet", 3),
    ("rounds/tiny/round_002/monitor/decision.json", 2),
    ("rounds/tiny/round_000/sweep/sweep.json", 2),
    ("rounds/tiny/run.json", 2),
]


@pytest.mark.parametrize(("name", "rounds"), USED)
def test_what_is_damaged_is_not_used_and_named_before_anything_is_paid_for(
    run: Path, name: str, rounds: int
) -> None:
    damage(run / name, run / name, "flip", random.Random(name))
    before = stages_begun(run)
    refused = ssd_loop("--config", "tiny.yaml", "--rounds", rounds, cwd=run)
    assert refused.returncode == 1, refused.stderr
    last = refused.stderr.strip().splitlines()[-1]
    assert name in last
    assert any(way_on in last for way_on in ("restore", "move ")), last
    assert "Traceback" not in refused.stderr
    assert stages_begun(run) <= before + (name.endswith("model.safetensors") and "merged" in name)
    assert not (run / "rounds/tiny/round_003/sample").exists()


def test_a_damaged_card_is_written_anew(run: Path) -> None:
    card = run / "checkpoints/tiny/round_001/merged/README.md"
    whole = card.read_bytes()
    damage(card, card, "cut", random.Random(0))
    refused = ssd_loop("verify", "tiny", cwd=run)
    assert refused.returncode == 1
    assert "running the run again writes it anew" in refused.stdout
    assert ssd_loop("--config", "tiny.yaml", cwd=run).returncode == 0
    assert card.read_bytes() == whole
    assert ssd_loop("verify", "tiny", cwd=run).returncode == 0


def test_a_fork_that_fails_while_copying_is_completed_by_the_same_command(run: Path) -> None:
    """The second adapter is lost while it is copied: nothing of the fork is damage, and it goes on."""
    adapter = run / "checkpoints/tiny/round_002/adapter/adapter_model.safetensors"
    whole = adapter.read_bytes()
    adapter.write_bytes(whole[:-1])
    command = ["--resume-from", "tiny@2", "--run", "fork", "--rounds", 3, "--baselines.temperatures", "[]"]
    refused = ssd_loop(*command, cwd=run)
    assert refused.returncode == 1
    assert "round_002/adapter/adapter_model.safetensors" in refused.stderr.strip().splitlines()[-1]
    assert (run / "rounds/fork/round_000/evaluate").exists()
    checked = ssd_loop("verify", "fork", cwd=run)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "the command that began it completes it" in checked.stdout
    shown = ssd_loop("status", "fork", cwd=run)
    assert "the command that began it completes it" in shown.stderr
    adapter.write_bytes(whole)
    done = ssd_loop(*command, cwd=run)
    assert done.returncode == 0, done.stderr
    assert ssd_loop("verify", "fork", cwd=run).returncode == 0
    assert os.readlink(run / "checkpoints/fork/best").startswith("round_")
