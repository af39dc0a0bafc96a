"""Whether the model's own samples hold something to consolidate: the one check that samples."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ssd_loop import measuring, models
from ssd_loop.config import RunConfig
from ssd_loop.doctor.subject import Finding
from ssd_loop.figures import read_report, signal_lines
from ssd_loop.store import Input
from ssd_loop.workbench import Workbench

PROBLEMS, SAMPLES = 40, 4  # enough for a first look, in a minute or two on two cores with the default model


def check_signal(config: RunConfig) -> Finding:
    """Draw a few samples of held-out problems and judge them."""
    evaluate = config.evaluate.model_copy(
        update={
            "panels": ("heldout",),
            "limit": min(config.evaluate.limit or PROBLEMS, PROBLEMS),
            "samples_per_problem": {**config.evaluate.counts, "heldout": SAMPLES},
        }
    )
    small = config.model_copy(update={"evaluate": evaluate})
    bench = Workbench(small, models.resolve(config.model.name, config.model.revision, config.model.dtype))
    try:
        with tempfile.TemporaryDirectory(prefix="ssd_loop-") as scratch:
            done = measuring.evaluate_alone(bench, Input("doctor"), Path(scratch) / "evaluate")
            found = read_report(done.path)["signal"]
    finally:
        bench.close()
    return judge_signal(found)


def judge_signal(found: dict[str, Any] | None) -> Finding:
    """A model whose consistent answers are more often wrong is warned of."""
    if found is None:
        return Finding("signal", "warn", "answers are not run, so it cannot be told", "set sandbox.execute")
    detail = "; ".join(signal_lines(found)).removeprefix("signal: ")
    if found["label"] == "against":
        return Finding("signal", "warn", detail, "filter the samples, or take another model")
    return Finding("signal", "pass", detail)
