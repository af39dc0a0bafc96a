"""A tiny run with every kind of stage: two rounds that gain, a second look, pruning, sweeps and finals."""

from __future__ import annotations

import json
from pathlib import Path

from tests.runs import tiny_config

DIGIT = {"columns": {"tests": "answer"}, "checker": "exact"}
# The answer that is right, by file. Untrained models say 0 now and then and 7 hardly ever; training on what
# passed teaches 7, so `ood` gets worse and the monitors take a second look at it.
ANSWERS = {"train": "7", "heldout": "7", "report": "7", "ood": "0"}
PROBLEMS = 24


def write(folder: Path, model: Path, engine: str, **sections: object) -> Path:
    """Config and tasks of the run in an existing folder; returns the config's path."""
    for name, answer in ANSWERS.items():
        rows = [{"prompt": f"Say the number of {name} {n}.", "answer": answer} for n in range(PROBLEMS)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    panels = {name: {"source": f"{name}.jsonl", **DIGIT} for name in ANSWERS if name != "train"}
    settings = {
        "rounds": 2,
        "prompts": {"source": "train.jsonl", "limit": PROBLEMS, **DIGIT},
        "sample": {
            "samples_per_prompt": 64,
            "top_k": 0,
            "top_p": 1.0,
            "max_new_tokens": 4,
            "shard_size": 256,
        },
        "filter": {"filters": ["fails_tests", "duplicate"]},
        "train": {
            "learning_rate": 0.03,
            "epochs": 6,
            "batch_size": 16,
            "micro_batch_size": 16,
            "probe_margin": 10.0,
        },
        "merge": {"keep_last": 1},
        "evaluate": {
            "panels": ["heldout", "ood"],
            "sources": panels,
            "limit": PROBLEMS,
            "samples_per_problem": 8,
            "max_new_tokens": 4,
        },
        "monitor": {"second_look": 2, "margins": {"ood_pass_at_1": 0.0}},
        "baselines": {"temperatures": [0.5, 1.0], "top_k": [0], "top_p": [1.0]},
    }
    return tiny_config(folder, model, engine, **{**settings, **sections})
