"""The engine around the toy model: a `Run` as `ssd_loop.launch` makes it, and what is patched in for it.

Patched, in this benchmark alone and nowhere in the engine:

- `ssd_loop.evaluation.load_reference`: the engine's human text is Python's library and manual, which a model
  of a hundred lexemes cannot read, and no setting names another.
- `ssd_loop.judging.judge`: every distinct answer to a problem is run once in the sandbox by all runs together
  instead of once a round; verdicts are kept in a file. Answers that ran out of time are run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.collapse.toy import data
from ssd_loop import composition, evaluation, judging, models, sandbox
from ssd_loop.config import RunConfig
from ssd_loop.durable import append_jsonl
from ssd_loop.place import Place
from ssd_loop.problems import Problem
from ssd_loop.prompts import content_input, load_prompts
from ssd_loop.running import Run
from ssd_loop.sandbox import Limits
from ssd_loop.tracking import Tracker
from ssd_loop.workbench import Workbench

Settings = Mapping[str, Mapping[str, Any]]

# Healthy and gentle: samples of the raw law, one pass at a small rate. Futility ends healthy runs that have
# nothing left to gain; that is no alarm, so it is off.
GENTLE: dict[str, dict[str, Any]] = {
    "sample": {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": 96,
        "samples_per_prompt": 2,
        "shard_size": 512,
    },
    "filter": {"filters": ["raw"]},
    "train": {
        "learning_rate": 5e-4,
        "lora_rank": 4,
        "lora_alpha": 8,
        "batch_size": 8,
        "micro_batch_size": 8,
        "probe_every": 4,
    },
    "merge": {"keep_last": 1},
    "evaluate": {
        "panels": ["heldout", "ood"],
        "samples_per_problem": {"heldout": 8, "probe": 8, "twin": 8, "ood": 2},
        "limit": None,
        "pass_at": [1, 8],
        "diversity_at": 3,
        "max_new_tokens": 96,
        "reference_tokens": 112,
    },
    "monitor": {"action": "stop", "futility_gain": 0.0},
    "track": {"mode": "disabled"},
    "engine": {"name": "transformers", "device": "cpu", "max_model_len": 192},
}


def config(model: Path, folder: Path, seed: int, *more: Settings) -> RunConfig:
    """The settings of a run: gentle ones, changed by `more`."""
    settings: dict[str, Any] = {name: dict(section) for name, section in GENTLE.items()}
    for changes in more:
        for name, section in changes.items():
            settings[name] = {**settings.get(name, {}), **section}
    settings["sample"]["seed"] = seed
    settings["model"] = {"name": str(model), "dtype": "float32"}
    settings["prompts"] = data.source(folder, "prompts")
    panels = [name for name in settings["evaluate"]["panels"] if name != "twin"]
    settings["evaluate"]["sources"] = {name: data.source(folder, name) for name in panels}
    return RunConfig.model_validate(settings)


@contextmanager
def opened(root: Path, name: str, settings: RunConfig) -> Iterator[Run]:
    """A run of its own, closed at the end: `ssd_loop.launch.launch` without its checks and files."""
    place = Place(root, name)
    place.folder.mkdir(parents=True, exist_ok=True)
    base = models.resolve(settings.model.name, None, settings.model.dtype)
    content = models.content_hash(base.path)
    prompts = load_prompts(settings.prompts)
    sandbox.isolation()
    bench = Workbench(settings, base)
    panels = evaluation.problem_inputs(settings.evaluate)
    found = {"prompts": content_input(prompts), **panels}
    fingerprints = {name: content.fingerprint for name, content in found.items()}
    described = composition.describe_base(settings, base, content)
    tracker = Tracker("disabled", settings, name, name, place.folder)
    try:
        yield Run(place, settings, described, prompts, bench, tracker, fingerprints)
    finally:
        bench.close()


@contextmanager
def patched(verdicts: Path) -> Iterator[None]:
    """The engine with the toy's reference texts and remembered verdicts."""
    with ExitStack() as stack:
        # The least that gives a model its own human text, until there is a setting for it.
        stack.enter_context(mock.patch.object(evaluation, "load_reference", data.references))
        stack.enter_context(mock.patch.object(judging, "judge", remembering(judging.judge, verdicts)))
        yield


def remembering(judge: Callable[..., judging.Verdict], file: Path) -> Callable[..., judging.Verdict]:
    """The judge with a memory: verdicts by problem and answer, kept as lines of JSON."""
    known: dict[str, judging.Verdict] = {}
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                known[row["key"]] = (row["outcome"], row["behaviour"])
            except (ValueError, KeyError):  # torn by a kill
                continue

    def remembered(problem: Problem, answer: str | None, *, limits: Limits, execute: bool) -> judging.Verdict:
        if answer is None or not execute or problem.kind == "exact":
            return judge(problem, answer, limits=limits, execute=execute)
        asked = [problem.kind, problem.preamble, problem.entry_point, problem.tests, answer]
        key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]
        if key not in known:
            verdict = judge(problem, answer, limits=limits, execute=execute)
            if verdict[0] == "timeout":
                return verdict
            known[key] = verdict
            append_jsonl(file, {"key": key, "outcome": verdict[0], "behaviour": verdict[1]})
        return known[key]

    return remembered
