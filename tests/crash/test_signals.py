"""SIGTERM and Ctrl-C in every stage: exit 130 in time, nobody left, and how to go on in the last line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ssd_loop.durable import read_jsonl
from ssd_loop.place import Place
from ssd_loop.verifying import verify
from tests.crash import full_run, harness
from tests.crash.harness import Unbroken
from tests.runs import ssd_loop, tiny_config, tree

pytestmark = pytest.mark.slow

WITHIN_S = 20.0
GROUP, LEADER = os.killpg, os.kill
Sender = Callable[[int, int], None]

STAGES: list[tuple[str, signal.Signals, Sender]] = [
    ("0/evaluate", signal.SIGTERM, GROUP),
    ("1/sample", signal.SIGINT, GROUP),
    ("1/filter", signal.SIGTERM, LEADER),
    ("1/train", signal.SIGINT, LEADER),
    ("1/merge", signal.SIGTERM, LEADER),
    ("1/monitor", signal.SIGINT, LEADER),
    ("2/train", signal.SIGTERM, GROUP),
    ("2/second_look", signal.SIGTERM, GROUP),
    ("0/sweep", signal.SIGINT, GROUP),
    ("0/final", signal.SIGTERM, GROUP),
    ("2/final", signal.SIGINT, LEADER),
]


def interrupted(folder: Path, ready: Callable[[int], bool], sent: signal.Signals, send: Sender) -> None:
    """Start or resume a run, send a signal when it is ready for it, and check how it ends."""
    before = harness.children()
    process = subprocess.Popen(
        [sys.executable, "-m", "ssd_loop", "--config", "tiny.yaml"],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not ready(process.pid):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    began = time.monotonic()
    send(process.pid, sent)
    _, stderr = process.communicate(timeout=120)
    seconds = time.monotonic() - began
    print(f"ended {seconds:.1f} s after {sent.name}", file=sys.stderr)
    assert seconds < WITHIN_S
    assert process.returncode == 130, stderr
    assert "run the same command to go on" in stderr.strip().splitlines()[-1]
    assert "Traceback" not in stderr
    assert harness.outliving(before) == []
    assert verify(Place(folder, "tiny")).damaged == []


def begins(folder: Path, stage: str) -> Callable[[int], bool]:
    """Tells when a stage begins that is not in the log yet."""
    lines = len(read_jsonl(harness.events(folder)))

    def ready(pid: int) -> bool:
        return any(f"{n}/{name}" == stage for n, name in harness.begun(folder, lines))

    return ready


@pytest.mark.timeout(1800)
def test_interrupted_in_every_stage_a_run_ends_in_time_and_finishes_byte_equal(
    on_transformers: Unbroken, tmp_path: Path
) -> None:
    full_run.write(tmp_path, on_transformers.model, "transformers")
    for stage, sent, send in STAGES:
        interrupted(tmp_path, begins(tmp_path, stage), sent, send)
    done = ssd_loop("--config", "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path) == on_transformers.files


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.timeout(1800)
def test_interrupted_while_vllm_starts_and_draws(tiny_qwen3: Path, tmp_path: Path) -> None:
    full_run.write(tmp_path, tiny_qwen3, "vllm")
    interrupted(tmp_path, begins(tmp_path, "0/evaluate"), signal.SIGINT, GROUP)  # the worker is starting
    interrupted(tmp_path, begins(tmp_path, "1/sample"), signal.SIGTERM, GROUP)


def test_interrupted_while_generated_programs_run(tiny_llama: Path, tmp_path: Path) -> None:
    """The drawn answers are replaced by programs that never end: a tiny model writes none by itself."""
    sections = {"evaluate": {"panels": ["heldout"], "samples_per_problem": 8}, "sample": {"shard_size": 4096}}
    tiny_config(tmp_path, tiny_llama, "transformers", **sections)
    killed = ssd_loop("0/evaluate/shard", "--config", "tiny.yaml", cwd=tmp_path, program=[harness.KILL_AT])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    (shard,) = tmp_path.glob("rounds/tiny/round_000/evaluate.partial/shards/*.jsonl")
    rows = []
    for number, _ in enumerate(shard.read_text().splitlines()):
        text = f"```python\nnumber = {number}\nwhile True:\n    pass\n```"
        rows.append(json.dumps([tokenizer(text)["input_ids"], "stop", -1.0]))
    shard.write_text("\n".join(rows) + "\n")
    for sent, send in ((signal.SIGTERM, GROUP), (signal.SIGINT, LEADER)):
        interrupted(tmp_path, runs_programs, sent, send)


def runs_programs(pid: int) -> bool:
    """Whether a process has a sandbox among its descendants, with a program in it."""
    parents, names = {}, {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = status.read_text().rpartition(")")
        except OSError:
            continue
        parents[int(status.parent.name)] = int(rest.split()[1])
        names[int(status.parent.name)] = head.partition("(")[2]

    def is_below(child: int) -> bool:
        while child in parents and child != pid:
            child = parents[child]
        return child == pid

    return sum(name == "bwrap" and is_below(child) for child, name in names.items()) >= 2
