"""The kill harness in its short form, and in its long one under the marker `long`."""

from __future__ import annotations

import random
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.crash import harness
from tests.crash.harness import Kill, Tally, Unbroken

pytestmark = pytest.mark.slow

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
SHORT = {"transformers": 18, "vllm": 2}
LONG = {"transformers": 180, "vllm": 20}
PER_TEST = 9  # kills, so that no test takes too long


def killed(run: Unbroken, folder: Path, kills: int, seed: int) -> None:
    tally = harness.series(run, folder, kills, random.Random(seed))
    print(tally.line(run.engine), file=sys.stderr)
    assert tally.kills == kills
    assert tally.resumes == kills  # every kill was gone on from
    assert (tally.differences, tally.damage, tally.left_behind) == ([], [], [])


def test_the_run_has_every_kind_of_stage(on_transformers: Unbroken) -> None:
    assert {stage for _, stage in on_transformers.spans} == set(harness.MOMENTS)
    names = list(on_transformers.files)
    assert any(name.endswith("round_001/merged/pruned.json") for name in names)
    assert any(name.endswith("round_002/final/final.json") for name in names)
    assert on_transformers.files["checkpoints/tiny/best"] == "-> round_002"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(SHORT["transformers"] // PER_TEST))
def test_killed_anywhere_a_run_ends_byte_equal(on_transformers: Unbroken, tmp_path: Path, seed: int) -> None:
    killed(on_transformers, tmp_path, PER_TEST, seed)


@needs_vllm
@pytest.mark.timeout(1800)
def test_killed_anywhere_while_vllm_draws_it_ends_byte_equal(on_vllm: Unbroken, tmp_path: Path) -> None:
    killed(on_vllm, tmp_path, SHORT["vllm"], 0)


@pytest.mark.timeout(1800)
def test_killed_in_the_second_draw_of_a_final_it_ends_byte_equal(
    on_transformers: Unbroken, tmp_path: Path
) -> None:
    """And in the moments after a decision: before `best` moves, and before old weights are pruned."""
    tally = Tally()
    for moment in ("1/train/step", "1/monitor/best", "2/monitor/best", "2/monitor/prune", "0/final/second"):
        harness.kill_once(on_transformers, tmp_path, Kill(moment), 600.0, tally)
        assert tally.moments[moment] == 1
    assert harness.finish(on_transformers, tmp_path, tally) == []
    assert (tally.damage, tally.left_behind) == ([], [])


@pytest.mark.long
@pytest.mark.timeout(0)
def test_killed_two_hundred_times_it_ends_byte_equal(
    on_transformers: Unbroken, on_vllm: Unbroken, tmp_path: Path
) -> None:
    killed(on_transformers, tmp_path / "transformers", LONG["transformers"], 100)
    killed(on_vllm, tmp_path / "vllm", LONG["vllm"], 100)
