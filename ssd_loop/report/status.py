"""The state of a run, read from its files alone: which stages are finished and what they measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ssd_loop import costs, evaluation, store
from ssd_loop.errors import BadArtifactError, ConfigError
from ssd_loop.monitors import rule

STAGES = ("sample", "filter", "train", "merge", "evaluate", "monitor")
WEIGHT_STAGES = {"train": "adapter", "merge": "merged"}


def runs(root: Path) -> list[str]:
    """Names of the runs below ``rounds/``."""
    return sorted(p.parent.name for p in (root / "rounds").glob("*/run.json"))


def read(root: Path, name: str) -> dict[str, Any]:
    """Everything that the table shows, as plain data.

    Raises:
        ConfigError: there is no such run.
    """
    folder = root / "rounds" / name
    if not (folder / "run.json").is_file():
        known = ", ".join(runs(root)) or "none"
        raise ConfigError(f"there is no run {name!r} under {root / 'rounds'}; runs here: {known}")
    try:
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        model, engine = about["base_model"], about["engine"]
        title, dtype = model["title"], model["dtype"]
    except (ValueError, KeyError, TypeError):
        raise BadArtifactError(f"{folder / 'run.json'} is torn; restore it") from None
    spent = costs.read(folder)
    rounds = [
        _round(root, name, int(path.name.removeprefix("round_")), spent)
        for path in sorted(folder.glob("round_*"))
        if path.name.removeprefix("round_").isdigit()
    ]
    link = root / "checkpoints" / name / "best"
    return {
        "run": name,
        "model": title,
        "engine": engine,
        "dtype": dtype,
        "rounds": rounds,
        "best": str(link.readlink()) if link.is_symlink() else None,
        "seconds": round(sum(cost.seconds for cost in spent.values()), 1),
    }


def _round(root: Path, name: str, n: int, spent: dict[tuple[int, str], costs.Cost]) -> dict[str, Any]:
    stages: dict[str, Any] = {}
    result: dict[str, Any] = {"round": n, "stages": stages}
    for stage in STAGES if n else ("evaluate",):
        top = root / ("checkpoints" if stage in WEIGHT_STAGES else "rounds")
        folder = top / name / f"round_{n:03d}" / WEIGHT_STAGES.get(stage, stage)
        done = store.finished(folder)
        cost = spent.get((n, stage), costs.Cost())
        state = "finished" if done else "partial" if _partial(folder).exists() else "absent"
        stages[stage] = {
            "state": state,
            "seconds": round(cost.seconds, 1),
            "attempts": cost.attempts,
            "metrics": done.manifest.metrics if done else {},
        }
        if done and stage == "evaluate":
            result["report"] = evaluation.headline(evaluation.read_report(folder))
        if done and stage == "monitor":
            decision = rule.read_decision(folder)
            result |= {"verdict": decision.verdict, "reason": decision.reason}
    return result


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def console() -> Console:
    """Standard output; wide enough for the tables where it is not a terminal."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=120)


def show(state: dict[str, Any], console: Console) -> None:
    """Print the run as tables."""
    console.print()
    console.print(
        f"run {state['run']}: {state['model']}, {state['engine']}, {state['dtype']}; "
        f"{state['seconds']:.0f} s so far; best: {state['best'] or 'not decided yet'}",
        markup=False,
    )
    console.print(_quality(state))
    console.print(_work(state))
    for row in state["rounds"]:
        if "verdict" in row:
            console.print(f"round {row['round']}: {row['verdict']} - {row['reason']}", markup=False)


def _quality(state: dict[str, Any]) -> Table:
    table = Table(
        title="What each round's model can do (± standard error over problems)", title_justify="left"
    )
    reports = [row.get("report", {}) for row in state["rounds"]]
    names = list(dict.fromkeys(key for report in reports for key in report))
    shown = [n for n in names if "pass_at" in n and not n.endswith("_se")]
    shown += [n for n in names if "distinct" in n] + ["reference_perplexity"]
    table.add_column("round", justify="right")
    for name in shown:
        table.add_column(_heading(name), justify="right")
    for row, report in zip(state["rounds"], reports, strict=True):
        if report:
            table.add_row(str(row["round"]), *(_cell(report, name) for name in shown))
    return table


def _heading(name: str) -> str:
    return (
        re.sub(r"_pass_at_(\d+)", r" pass@\1 %", name)
        .replace("_distinct_at_", " distinct@")
        .replace("reference_perplexity", "reference perplexity")
    )


def _cell(report: dict[str, Any], name: str) -> str:
    value = report.get(name)
    if value is None:
        return "-"
    if "pass_at" in name:
        return f"{100 * value:.1f} ± {100 * report[name + '_se']:.1f}"
    return f"{value:.3f}"


def _work(state: dict[str, Any]) -> Table:
    table = Table(title="What each stage took", title_justify="left")
    table.add_column("round", justify="right")
    for stage in STAGES:
        table.add_column(stage, justify="right")
    for row in state["rounds"]:
        table.add_row(str(row["round"]), *(_stage_cell(row["stages"].get(s)) for s in STAGES))
    return table


def _stage_cell(stage: dict[str, Any] | None) -> str:
    if stage is None or stage["state"] == "absent":
        return "-"
    if stage["state"] == "partial":
        return "unfinished"
    metrics = stage["metrics"]
    tokens = metrics.get("tokens") or metrics.get("tokens_trained") or metrics.get("kept_tokens")
    seconds = f"{stage['seconds']:.0f} s"
    return f"{tokens:,} tok, {seconds}" if tokens else seconds
