"""Whole rounds: a real run of the default recipe, and one of its rounds against TRL 1.14's `SSDTrainer`.

    python -m benchmarks.speed.rounds --out FOLDER [--repeats 3]

The round is 64 prompts of at most 128 new tokens: sample, filter, train, merge, the engine warm from round 0.
It is run `repeats` times, in turn with one pass of the peer. The whole run has five rounds and is run once;
it stays in FOLDER/run-*.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.speed import material
from benchmarks.speed.part import ROOT, main, printed
from ssd_loop import costs
from ssd_loop.prompts import load_prompts, message

PEER = ROOT / "benchmarks" / "peers"
STAGES = ("sample", "filter", "train", "merge")
ROUND = [
    *("--rounds", "1", "--prompts.limit", str(material.PROMPTS)),
    *("--sample.max_new_tokens", str(material.NEW_TOKENS)),
    *("--evaluate.limit", "4", "--baselines.temperatures", "[]", "--monitor.action", "warn"),
]
COMMANDS = (["--help"], ["run", "--help"], ["status", "bench"], ["verify", "bench"])


def run(folder: Path, flags: list[str]) -> dict[str, Any]:
    """Wall seconds of the command, seconds of each stage, peak memory of all its processes together."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "ssd_loop", "--run", "bench", "--track.mode", "disabled", *flags]
    peak = 0
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, env=environment())
        while process.poll() is None:
            peak = max(peak, held_bytes(process.pid))
            time.sleep(0.5)
    wall_s = time.perf_counter() - began
    if process.returncode not in (0, 3):
        raise SystemExit((folder / "output.txt").read_text()[-3000:])
    spent = costs.read(folder / "rounds" / "bench")
    return {
        "wall_s": wall_s,
        "stages_s": {f"{n}/{stage}": cost.seconds for (n, stage), cost in spent.items()},
        "busy_s": costs.total(spent.values()).busy_seconds,
        "peak_gib": peak / (1 << 30),
        "status": process.returncode,
    }


def held_bytes(pid: int) -> int:
    """Memory of a process and of all below it, shared pages counted once; 0 where one ends meanwhile."""
    try:
        leader = psutil.Process(pid)
        return sum(each.memory_full_info().pss for each in [leader, *leader.children(recursive=True)])
    except psutil.NoSuchProcess:
        return 0


def environment() -> dict[str, str]:
    """The command line of this checkout, whatever is installed."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


def peer(folder: Path, prompts: Path, model: Path) -> dict[str, Any]:
    """One pass of TRL's trainer; its TRL is installed the first time."""
    target = folder / "trl-1.14"
    if not target.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
        subprocess.run([*pip, "-r", str(PEER / "requirements.txt")], check=True)
    return printed("benchmarks.peers.trl_ssd", str(model), str(prompts), path=target)


def chats(folder: Path) -> tuple[Path, Path]:
    """The prompts as chats in a file, and the model."""
    of = material.bench()
    prompts = load_prompts(of.config.prompts)[: material.PROMPTS]
    file = folder / "chats.json"
    file.write_text(json.dumps([[{"role": "user", "content": message(prompt)}] for prompt in prompts]))
    return file, of.base.path


def clocked(folder: Path, commands: Sequence[Sequence[str]], repeats: int) -> dict[str, list[float]]:
    """Wall seconds of short commands on a finished run, three times at least."""
    found: dict[str, list[float]] = {}
    for _ in range(max(3, repeats)):
        for arguments in commands:
            began = time.perf_counter()
            command = [sys.executable, "-m", "ssd_loop", *arguments]
            subprocess.run(command, cwd=folder, env=environment(), capture_output=True, check=True)
            found.setdefault(" ".join(arguments), []).append(time.perf_counter() - began)
    return found


def measure(out: Path, repeats: int) -> dict[str, Any]:
    """Rounds and the peer in turn, then the whole run."""
    prompts, model = chats(out)
    ours, theirs = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            ours.append(run(Path(scratch), ROUND))
        theirs.append(peer(out, prompts, model))
    kept = Path(tempfile.mkdtemp(dir=out, prefix="run-"))
    whole = run(kept, ["--rounds", "5"])
    short = clocked(kept, COMMANDS, repeats)
    rounds = [sum(each["stages_s"][f"1/{stage}"] for stage in STAGES) for each in ours]
    return {
        "round_s": rounds,
        "rounds": ours,
        "peer": theirs,
        "times_faster": statistics.median(each["seconds"] for each in theirs) / statistics.median(rounds),
        "run": whole,
        "wall_over_busy": whole["wall_s"] / whole["busy_s"],
        "commands_s": short,
    }


if __name__ == "__main__":
    main(measure, __doc__)
