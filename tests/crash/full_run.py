"""A tiny run with every kind of stage: two rounds that gain, a second look, pruning, sweeps and finals."""

from __future__ import annotations

from pathlib import Path

from tests.runs import DIGIT_DRAWS, digit_tasks, tiny_config

# The answer that is right, by file. Untrained models say 0 now and then and 7 hardly ever; training on what
# passed teaches 7, so `ood` gets worse and the monitors take a second look at it.
ANSWERS = {"train": "7", "heldout": "7", "report": "7", "ood": "0"}
PROBLEMS = 24


def write(folder: Path, model: Path, engine: str, **sections: object) -> Path:
    """Config and tasks of the run in an existing folder; returns the config's path."""
    panels = digit_tasks(folder, {name: [answer] * PROBLEMS for name, answer in ANSWERS.items()})
    prompts = panels.pop("train")
    settings = {
        "rounds": 2,
        "prompts": {**prompts, "limit": PROBLEMS},
        "sample": DIGIT_DRAWS,
        "filter": {"filters": ["fails_tests", "duplicate"]},
        "train": {
            "learning_rate": 0.03,
            "epochs": 10,
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
