"""Whole rounds: a real run of the default recipe, and one of its rounds against TRL 1.14's `SSDTrainer`.

    python -m benchmarks.speed.rounds --out FOLDER [--repeats 3]

The round is 64 prompts of at most 128 new tokens: sample, filter, train, merge, the engine warm from round 0.
It is run `repeats` times, in turn with one pass of the peer. The whole run has five rounds and is run once.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.speed import material
from benchmarks.speed.part import ROOT, alone, main

PEER = ROOT / "benchmarks" / "peers"
STAGES = ("sample", "filter", "train", "merge")
ROUND = [
    *("--rounds", "1", "--prompts.limit", str(material.PROMPTS)),
    *("--sample.max_new_tokens", str(material.NEW_TOKENS)),
    *("--evaluate.limit", "4", "--baselines.temperatures", "[]", "--monitor.action", "warn"),
]
COMMANDS = (["--help"], ["run", "--help"], ["status", "bench"], ["verify", "bench"])


def one(kind: str, *arguments: str) -> dict[str, Any]:
    """A run of this engine in a folder of its own, and what its ledger says."""
    if kind == "round":
        with tempfile.TemporaryDirectory() as scratch:
            return run(Path(scratch), ROUND)
    return run(Path(arguments[0]), ["--rounds", arguments[1]])


def run(folder: Path, flags: list[str]) -> dict[str, Any]:
    """Wall seconds of the command, seconds of each stage, peak memory of all its processes together."""
    import psutil

    began = time.perf_counter()
    command = [sys.executable, "-m", "ssd_loop", "--run", "bench", "--track.mode", "disabled", *flags]
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=output, env=environment(), text=True
        )
        peak, done = [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.5):
                total = 0
                for each in [
                    psutil.Process(process.pid),
                    *psutil.Process(process.pid).children(recursive=True),
                ]:
                    try:
                        total += each.memory_info().rss
                    except psutil.NoSuchProcess:
                        continue
                peak[0] = max(peak[0], total)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        status = process.wait()
        done.set()
        watcher.join()
    wall_s = time.perf_counter() - began
    if status not in (0, 3):
        raise SystemExit((folder / "output.txt").read_text()[-3000:])
    from ssd_loop import costs

    spent = costs.read(folder / "rounds" / "bench")
    stages = {f"{n}/{stage}": cost.seconds for (n, stage), cost in spent.items()}
    return {
        "wall_s": wall_s,
        "stages_s": stages,
        "busy_s": sum(cost.busy_seconds for cost in spent.values()),
        "peak_gib": peak[0] / (1 << 30),
        "status": status,
    }


def environment() -> dict[str, str]:
    """The command line of this checkout, whatever is installed."""
    import os

    return os.environ | {"PYTHONPATH": str(ROOT)}


def peer(folder: Path, prompts: Path, model: Path) -> dict[str, Any]:
    """One pass of TRL's trainer; its TRL is installed the first time."""
    target = folder / "trl-1.14"
    if not target.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
        subprocess.run([*pip, "-r", str(PEER / "requirements.txt")], check=True)
    command = [sys.executable, "-m", "benchmarks.peers.trl_ssd", str(model), str(prompts)]
    import os

    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def chats(folder: Path) -> tuple[Path, Path]:
    """The prompts as chats in a file, and the model."""
    from ssd_loop.prompts import load_prompts, message

    of = material.bench()
    prompts = load_prompts(of.config.prompts)[: material.PROMPTS]
    file = folder / "chats.json"
    file.write_text(json.dumps([[{"role": "user", "content": message(prompt)}] for prompt in prompts]))
    return file, of.base.path


def commands(folder: Path, repeats: int) -> dict[str, list[float]]:
    """Wall seconds of short commands on a finished run."""
    found: dict[str, list[float]] = {}
    for _ in range(max(3, repeats)):
        for arguments in COMMANDS:
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
        ours.append(alone("benchmarks.speed.rounds", "round"))
        theirs.append(peer(out, prompts, model))
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        whole = alone("benchmarks.speed.rounds", "run", scratch, "5")
        short = commands(Path(scratch), repeats)
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
    main(measure, one, __doc__)
