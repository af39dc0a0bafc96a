"""Tiny real runs for end-to-end tests: a config on a tiny model, and the command line in a process."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import yaml

# Files whose bytes may differ between an unbroken and a resumed run (docs: one run on disk).
MAY_DIFFER = {"run.json", "events.jsonl", "costs.jsonl", ".lock"}


def damage(path: Path, other: Path, kind: str, rng: random.Random) -> None:
    """Flip a bit of a file, cut it, delete it, or swap it with another one."""
    before = path.read_bytes()
    if kind == "flip":
        at = rng.randrange(len(before))
        path.write_bytes(before[:at] + bytes([before[at] ^ 1 << rng.randrange(8)]) + before[at + 1 :])
    elif kind == "cut":
        path.write_bytes(before[: rng.randrange(len(before))])
    elif kind == "delete":
        path.unlink()
    else:
        path.write_bytes(other.read_bytes())
        other.write_bytes(before)


def tiny_config(folder: Path, model: Path, engine: str, **sections) -> Path:
    """A config that runs in seconds; returns its path."""
    config = {
        "rounds": 1,
        "model": {"name": str(model)},
        "prompts": {"limit": 16},
        "sample": {"max_new_tokens": 24, "shard_size": 8},
        # A random model writes no code; only empty answers are dropped.
        "filter": {"filters": ["empty"]},
        "train": {"learning_rate": 1e-3, "lora_rank": 4, "batch_size": 4, "micro_batch_size": 4},
        "evaluate": {
            "limit": 8,
            "samples_per_problem": 1,
            "max_new_tokens": 16,
            "reference_tokens": 32,
        },
        "baselines": {"temperatures": []},
        "monitor": {"action": "warn"},
        "track": {"mode": "disabled"},
        "engine": {"name": engine, "max_model_len": 1024},
    }
    for section, values in sections.items():
        config[section] = {**config.get(section, {}), **values} if isinstance(values, dict) else values
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


DIGIT = {"columns": {"tests": "answer"}, "checker": "exact"}
# Untrained models say a given digit seldom, and only in a few tokens; so many draws have some that do.
DIGIT_DRAWS = {"samples_per_prompt": 64, "top_k": 0, "top_p": 1.0, "max_new_tokens": 4, "shard_size": 256}


def digit_tasks(folder: Path, answers) -> dict[str, dict]:
    """Write a file of tasks under each name, whose answers are the digits given; returns them as sources."""
    for name, digits in answers.items():
        rows = [
            {"prompt": f"Say the number of {name} {n}.", "answer": digit} for n, digit in enumerate(digits)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: {"source": f"{name}.jsonl", **DIGIT} for name in answers}


def ssd_loop(*arguments, cwd: Path, program=("-m", "ssd_loop"), timeout=300):
    """Run the command line in a process of its own."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def tree(root: Path) -> dict[str, str]:
    """Hash of every file of a run that must be byte-equal, by path; links by their target."""
    found = {}
    for top in ("rounds", "checkpoints"):
        for path in sorted((root / top).rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_symlink():
                found[name] = f"-> {os.readlink(path)}"
            elif (
                path.is_file()
                and path.suffix != ".html"
                and path.name not in MAY_DIFFER
                and "/wandb/" not in name
            ):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
