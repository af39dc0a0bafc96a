"""Opens what a command needs, hands it to the loop or to one evaluation, and closes it again."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from ssd_loop import controller, engines, evaluation, models, progress, provenance, sandbox, store, tracking
from ssd_loop.config import RunConfig
from ssd_loop.config_file import differences
from ssd_loop.errors import BadArtifactError, ConfigError, StaleOutputError
from ssd_loop.prompts import load_prompts
from ssd_loop.report import status
from ssd_loop.store import Input
from ssd_loop.workbench import Workbench

RUN_FILE = "run.json"
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
FINISHED, STOPPED = 0, 3

# OpenMP threads that spin while they wait take the cores from whoever has work: the engine and the trainer
# share one machine. Takes effect because torch is imported later than this module.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def launch(name: str, config: RunConfig) -> int:
    """Run or continue a run; its exit code.

    Raises:
        ConfigError: the name, the prompts or the settings cannot be used; nothing was written.
        StaleOutputError: the run exists with other settings.
    """
    if not RUN_NAME.fullmatch(name):
        raise ConfigError(
            f"run name {name!r} cannot be used; take letters, digits, '.', '_' and '-', at most 64, and "
            "start with a letter or digit (--run)"
        )
    mode = tracking.resolve_mode(config.track)
    prompts = load_prompts(config.prompts)
    evaluation.problem_inputs(config.evaluate)  # a panel that is not installed is known now
    folder = Path("rounds") / name
    with store.run_lock(folder):
        about = _known(folder, config)
        base = models.resolve(config.model.name, config.model.revision, config.model.dtype)
        base_hash = models.content_hash(base.path)
        engines.check_context(base.path, config.engine.max_model_len)
        models.stop_token_ids(base.path)
        bench = Workbench(config, base)
        if config.sandbox.execute:
            sandbox.isolation()
        if about is None:
            about = _describe(config, bench, base_hash)
            store.write_json(folder / RUN_FILE, about)
        _warn_of_changes(about)
        tracker = tracking.Tracker(mode, config, name, about["tracking_id"], folder)
        run = controller.Run(name, config, Input(base_hash), prompts, bench, tracker)
        return _drive(run)


def _drive(run: controller.Run) -> int:
    _announce(run)
    code = 1
    try:
        decision = controller.run_rounds(run)
        stopped = decision is not None and controller.obeys(run.config, decision)
        code = STOPPED if stopped else FINISHED
    finally:
        run.bench.close()
        run.tracker.close(0 if code == STOPPED else code)  # a monitor stop is a result, not a failure
    status.show(status.read(Path(), run.name), status.console())
    if stopped and decision is not None:
        progress.say(
            f"stopped by the monitors after round {decision.round} ({decision.kind}): {decision.reason}"
        )
    else:
        progress.say(f"run {run.name} has finished its {run.config.rounds} rounds")
    return code


def _known(folder: Path, config: RunConfig) -> dict[str, Any] | None:
    """What an existing run was asked to be, after comparing it with what is asked now."""
    path = folder / RUN_FILE
    if not path.exists():
        return None
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        old = about["config"]
    except (ValueError, KeyError, TypeError):
        raise BadArtifactError(f"{path} is torn; restore it or choose another --run") from None
    if changed := differences(old, config.model_dump(mode="json")):
        raise StaleOutputError(
            f"run {folder.name} was begun with other settings ({'; '.join(changed)}); go on with the old "
            "ones or choose a new --run"
        )
    return about


def _describe(config: RunConfig, bench: Workbench, base_hash: str) -> dict[str, Any]:
    return {
        "config": config.model_dump(mode="json", exclude={"rounds"}),
        "base_model": {
            "name": config.model.name,
            "title": bench.base.title,
            "dtype": bench.base.dtype,
            "content_hash": base_hash,
        },
        "engine": bench.engine_name,
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
        "hardware": provenance.hardware(),
        "tracking_id": uuid.uuid4().hex[:12],
    }


def _warn_of_changes(about: dict[str, Any]) -> None:
    now = provenance.versions()
    changed = [
        f"{name} {was} -> {now.get(name, 'missing')}"
        for name, was in about["versions"].items()
        if now.get(name) != was
    ]
    if changed:
        progress.say(f"warning: versions changed since this run began: {', '.join(changed)}")


def _announce(run: controller.Run) -> None:
    isolation = "bubblewrap" if run.config.sandbox.execute else "none: code is not executed"
    progress.say(
        f"run {run.name}: {run.bench.base.title}, {run.bench.base.dtype}, engine {run.bench.engine_name}, "
        f"sandbox {isolation}, tracking {run.tracker.mode}"
    )


def evaluate_model(config: RunConfig, *, out: Path | None, as_json: bool) -> None:
    """Measure one model on the panels and print its report.

    Args:
        config: Settings; `model.name` is the model.
        out: Folder for samples, results and report, which must not exist yet; None keeps nothing.
        as_json: Print the report as JSON instead of a summary.
    """
    if out is not None and out.exists():
        raise ConfigError(f"--out {out} exists already; name a new folder")
    base = models.resolve(config.model.name, config.model.revision, config.model.dtype)
    if config.sandbox.execute:
        sandbox.isolation()
    bench = Workbench(config, base)
    try:
        with tempfile.TemporaryDirectory(prefix="ssd_loop-") as scratch:
            folder = out or Path(scratch) / "evaluate"
            done = controller.evaluate_alone(bench, Input(models.content_hash(base.path)), folder)
            report = evaluation.read_report(done.path)
    finally:
        bench.close()
    if as_json:
        json.dump(report, sys.stdout)
        print()
        return
    print(f"{base.title}, {base.dtype}, engine {bench.engine_name}")
    for name, value in evaluation.headline(report).items():
        print(f"  {name}: {value:,.4g}")
