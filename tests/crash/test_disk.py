"""A disk that fills up at any write leaves a run that the same command finishes, to the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssd_loop.config import RunConfig
from ssd_loop.config_file import load
from ssd_loop.doctor import room
from ssd_loop.errors import SsdLoopError
from ssd_loop.models import resolve
from ssd_loop.place import Place
from ssd_loop.workbench import Workbench
from tests.crash.harness import Unbroken
from tests.runs import ssd_loop

# A stage, and how many bytes are still free when it begins.
MOMENTS = ["start", "0/evaluate", "1/sample:20000", "1/train:8192", "1/merge:4096", "1/monitor"]
MOMENTS += ["2/train:100000", "2/merge:150000", "2/second_look"]
MOMENTS += ["0/sweep:4096", "0/final:30000", "2/final:8192"]


def in_own_namespace() -> list[str]:
    """The command in whose child file systems can be mounted; a skip where there is none."""
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        pytest.skip("unshare or mount is not installed")
    command = ["unshare", "--mount", "--propagation", "private"]
    command += [] if os.geteuid() == 0 else ["--map-root-user"]
    tried = subprocess.run(
        [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True
    )
    if tried.returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")
    return command


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_full_disk_at_any_stage_leaves_a_run_that_finishes_byte_equal(on_transformers: Unbroken) -> None:
    command = [
        *in_own_namespace(),
        sys.executable,
        "-m",
        "tests.crash.full_disk",
        on_transformers.model,
        *MOMENTS,
    ]
    here = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    *stopped, last = found["attempts"]
    for attempt in stopped:
        assert attempt["code"] == 1, attempt
        assert "No space left on device" in attempt["last"], attempt
        assert "run the same command" in attempt["last"], attempt
        assert not attempt["traceback"], attempt
        assert attempt["damage"] == [], attempt
    assert len({attempt["reached"] for attempt in stopped}) >= 8  # it was full in many different stages
    assert last["code"] == 0, last
    assert found["files"] == on_transformers.files


@pytest.mark.slow
def test_too_small_a_disk_is_told_before_anything_is_written(
    on_transformers: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: RunConfig = load(on_transformers.folder / "tiny.yaml", {})
    base = resolve(config.model.name, None, config.model.dtype)
    subject = Workbench(config, base).subject
    monkeypatch.chdir(on_transformers.folder)
    needed = room.weight_bytes(subject)
    sizes = {"adapter": 4 * subject.sizes.adapter, "weights": subject.sizes.weights}
    assert needed == (2 + 6) * sizes["adapter"] + 2 * sizes["weights"]
    free = {"bytes": needed}
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, free["bytes"]))
    room.require_disk(subject, Place(tmp_path, "new"))
    free["bytes"] -= 1
    with pytest.raises(SsdLoopError, match=r"will write about .* more below .*make room.*merge\.keep_last"):
        room.require_disk(subject, Place(tmp_path, "new"))
    assert not list(tmp_path.iterdir())
    room.require_disk(subject, Place(on_transformers.folder, "tiny"))  # most of it is there already


@pytest.mark.slow
def test_the_run_itself_stops_for_lack_of_room(on_transformers: Unbroken, tmp_path: Path) -> None:
    """The real command on a real small disk, with a model that does not fit it."""
    command = in_own_namespace()
    script = (
        f"mount -t tmpfs -o size=256k tmpfs {tmp_path} && cp {on_transformers.folder}/*.jsonl "
        f"{on_transformers.folder}/tiny.yaml {tmp_path} && cd {tmp_path} && {sys.executable} -m ssd_loop "
        "--config tiny.yaml; code=$?; ls rounds/tiny checkpoints/tiny >&2; exit $code"
    )
    done = subprocess.run([*command, "sh", "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "make room, or lower merge.keep_last or rounds" in done.stderr
    assert "round_000" not in done.stderr


@pytest.mark.slow
def test_weights_are_kept_of_the_last_rounds_and_the_best(on_transformers: Unbroken, tmp_path: Path) -> None:
    """`best` moved from round 1 to round 2, and round 1's weights went only then."""
    shutil.copytree(on_transformers.folder, tmp_path / "run", symlinks=True)
    weights = tmp_path / "run/checkpoints/tiny"
    assert os.readlink(weights / "best") == "round_002"
    assert not (weights / "round_001/merged/model.safetensors").exists()
    assert all((weights / f"round_00{n}/adapter/adapter_model.safetensors").exists() for n in (1, 2))
    more = ["--config", "tiny.yaml", "--rounds", 3, "--baselines.temperatures", "[]"]
    done = ssd_loop(*more, cwd=tmp_path / "run")
    assert done.returncode == 0, done.stderr
    best = os.readlink(weights / "best")
    whole = {path.parents[1].name for path in weights.glob("round_*/merged/model.safetensors")}
    assert whole == {best, "round_003"}
