"""Killed during every stage and run again: the same bytes as a run that was never stopped."""

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.runs import ssd_loop, tiny_config, tree

pytestmark = pytest.mark.slow

KILL_AT = str(Path(__file__).parent / "kill_at.py")
MOMENTS = [
    "0/evaluate/shard",
    "0/evaluate/work",
    "1/sample/shard",
    "1/filter/work",
    "1/train/work",
    "1/merge/work",
    "1/evaluate/manifest",
    "1/monitor/work",
    "2/merge/manifest",
    "2/monitor/manifest",  # then the first merged model is pruned
]


def killed_and_resumed(tmp_path, model, engine, moments):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
        tiny_config(folder, model, engine, merge={"keep_last": 1}, rounds=2)
    done = ssd_loop("--config", "tiny.yaml", cwd=whole)
    assert done.returncode == 0, done.stderr
    for moment in moments:
        killed = ssd_loop(moment, "--config", "tiny.yaml", cwd=broken, program=[KILL_AT])
        assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
    resumed = ssd_loop("--config", "tiny.yaml", cwd=broken)
    assert resumed.returncode == 0, resumed.stderr
    assert any(name.endswith("round_002/merged/model.safetensors") for name in tree(whole))
    assert any(name.endswith("merged/pruned.json") for name in tree(whole))
    return tree(whole), tree(broken)


def test_killed_in_every_stage_ends_byte_equal(tmp_path, tiny_llama):
    whole, broken = killed_and_resumed(tmp_path, tiny_llama, "transformers", MOMENTS)
    assert broken == whole


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_killed_while_vllm_draws_ends_byte_equal(tmp_path, tiny_qwen3):
    moments = ["0/evaluate/shard", "1/sample/shard", "1/evaluate/work"]
    whole, broken = killed_and_resumed(tmp_path, tiny_qwen3, "vllm", moments)
    assert broken == whole


def test_changed_temperature_is_refused_in_the_middle_of_a_stage(tmp_path, tiny_llama):
    tiny_config(tmp_path, tiny_llama, "transformers")
    killed = ssd_loop("0/evaluate/shard", "--config", "tiny.yaml", cwd=tmp_path, program=[KILL_AT])
    assert killed.returncode == -signal.SIGKILL
    before = tree(tmp_path)
    for flag, value in (("--sample.temperature", "1.6"), ("--evaluate.temperature", "0.5")):
        refused = ssd_loop("--config", "tiny.yaml", flag, value, cwd=tmp_path)
        assert refused.returncode == 2
        last = refused.stderr.strip().splitlines()[-1]
        assert flag.removeprefix("--") in last
        assert "--run" in last
        assert "Traceback" not in refused.stderr
    assert tree(tmp_path) == before
    speed_only = ssd_loop("--config", "tiny.yaml", "--train.micro_batch_size", "2", cwd=tmp_path)
    assert speed_only.returncode == 0, speed_only.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_says_how_to_go_on(tmp_path, tiny_llama, sent):
    tiny_config(tmp_path, tiny_llama, "transformers")
    process = subprocess.Popen(
        [sys.executable, "-m", "ssd_loop", "--config", "tiny.yaml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    partial = tmp_path / "rounds/tiny/round_000/evaluate.partial"
    deadline = time.monotonic() + 90
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    started = time.monotonic()
    os.killpg(process.pid, sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert time.monotonic() - started < 20
    assert "Traceback" not in stderr
    assert "same command" in stderr.strip().splitlines()[-1]


def test_a_changed_input_is_found_before_it_is_used(tmp_path, tiny_llama):
    tiny_config(tmp_path, tiny_llama, "transformers")
    killed = ssd_loop("1/train/work", "--config", "tiny.yaml", cwd=tmp_path, program=[KILL_AT])
    assert killed.returncode == -signal.SIGKILL
    kept = tmp_path / "rounds/tiny/round_001/filter/kept.parquet"
    content = bytearray(kept.read_bytes())
    content[100] ^= 1
    kept.write_bytes(content)
    refused = ssd_loop("--config", "tiny.yaml", cwd=tmp_path)
    assert refused.returncode == 1
    assert "kept.parquet" in refused.stderr.strip().splitlines()[-1]
    assert "Traceback" not in refused.stderr
