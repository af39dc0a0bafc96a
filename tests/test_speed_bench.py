"""The speed benchmarks: what they count, and the tables they make of it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.speed import __main__ as speed
from benchmarks.speed import machine, part, training
from ssd_loop.engines import CPU_ENVIRONMENT

MACHINE = {
    "processor": "a processor (avx512_bf16)",
    "gpus": [],
    "cores": 2,
    "memory_gib": 24.0,
    "versions": {"torch": "2.13.0"},
    "copy_gib_s": 10.0,
}


@pytest.mark.slow
def test_counted_operations_are_those_that_torch_counts(tiny_llama: Path, tmp_path: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from ssd_loop.config import TrainConfig
    from ssd_loop.training import train
    from ssd_loop.training_rows import TrainingRow

    rng = random.Random(0)
    rows = [([rng.randrange(3, 256) for _ in range(20)], [rng.randrange(3, 256) for _ in range(40)])] * 8
    with FlopCounterMode(display=False) as counter:
        train(
            TrainConfig(batch_size=8, micro_batch_size=8, lora_rank=training.RANK),
            model_dir=tiny_llama,
            rows=[TrainingRow(*row) for row in rows],
            seed=0,
            device="cpu",
            out=tmp_path,
        )
    told = training.flops_per_token(tiny_llama, rows) * 8 * 60
    assert told == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_products_have_a_rate(tiny_llama: Path) -> None:
    shapes = machine.linear_shapes(tiny_llama)
    assert len(shapes) == 7
    assert machine.product_gflops(16, shapes, repeats=1) > 0.0


def test_tables_show_the_parts_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text(json.dumps(MACHINE))
    assert "## Training" not in speed.tables(tmp_path)
    found = {
        "tokens": 1000,
        "tokens_per_s": {training.OURS: [290.0, 300.0, 320.0], training.DEFAULTS: [100.0, 90.0, 110.0]},
        "peak_gib": {training.OURS: 2.0, training.DEFAULTS: 4.0},
        "flops_per_token": 5e8,
        "product_peak_gflops": [300.0, 310.0, 320.0],
        "share_of_peak": 300 * 5e8 / 310e9,
    }
    (tmp_path / "training.json").write_text(json.dumps(found))
    text = speed.tables(tmp_path)
    assert "| ssd_loop | 300 (290 to 320) | 3.00 | 2.0 |" in text
    assert "uses 48 %" in text


def test_growth_is_shown_by_groups_of_rounds(tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text(json.dumps(MACHINE))
    found = {
        "rounds": {"commands_s": {"status bench": [0.3, 0.5, 0.4]}},
        "round_s_by_group": [4.0, 4.1, 3.9, 4.2],
        "round_bytes_by_group": [2e6, 2e6, 2e6, 3e6],
        "merges_s": {"1": {"merge": [2.0], "gate": [16.0]}, "20": {"merge": [4.0], "gate": [18.0]}},
    }
    (tmp_path / "growth.json").write_text(json.dumps(found))
    text = speed.tables(tmp_path)
    assert "| 16 to 20 | 4.20 | 3.00 |" in text
    assert "| 20 | 4.0 | 18.0 |" in text
    assert "| `status bench` | 0.40 (0.30 to 0.50) |" in text


def test_other_tools_are_measured_without_a_runs_settings_of_threads() -> None:
    code = (
        "import os, sys, benchmarks.speed.training, benchmarks.speed.sampling; "
        "sys.exit('torch' in sys.modules or any(name in os.environ for name in "
        "benchmarks.speed.sampling.CPU_ENVIRONMENT))"
    )
    bare = {name: value for name, value in os.environ.items() if name not in CPU_ENVIRONMENT}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=part.ROOT, env=bare)


def test_an_arm_that_fails_says_why() -> None:
    with pytest.raises(SystemExit, match="KeyError: 'nothing'"):
        part.alone("benchmarks.speed.training", "nothing", "model", "rows")
