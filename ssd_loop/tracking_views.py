"""What W&B is shown of a round, read from the run's folders, and how it lays that out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ssd_loop import costs
from ssd_loop.filtering import DROPPED
from ssd_loop.monitors.decision import DECISION, Decision, read_decision
from ssd_loop.place import round_name
from ssd_loop.records import Dropped, read_rows, shortened
from ssd_loop.sampling import SAMPLES

TABLE = "sample/texts"
COLUMNS = ["round", "prompt_id", "finish_reason", "filter", "text"]
PROMPTS_SHOWN = 32
CHARACTERS_SHOWN = 2000  # of one text, half from its start and half from its end
VERDICTS = {"continue": 0, "remedy": 1, "stop": 2}

ARMS = ("t", "threshold", "slow", "slow_threshold")  # of a monitor, each beside its limit
Scalars = dict[str, float | str]
Sections = dict[str, dict[str, list[str]]]


def decided(decision: Decision) -> Scalars:
    """A decision as W&B plots it; what is null is left out.

    `monitor/<name>/value`, `/t` and its `/threshold`, `/slow` and its `/slow_threshold` for each monitor,
    `monitor/verdict` (0 continue, 1 remedy, 2 stop), `monitor/alarms` (how many), `monitor/best_round`,
    `monitor/look`, and as text `monitor/kind`, `monitor/attribution` and `monitor/reason`.
    """
    stored = decision.to_json()
    readings = stored["monitors"]
    shown: Scalars = {
        "monitor/verdict": VERDICTS[decision.verdict],
        "monitor/alarms": sum(reading["alarm"] for reading in readings.values()),
        **{f"monitor/{key}": stored[key] for key in ("best_round", "look", "kind", "attribution", "reason")},
    }
    for name, reading in readings.items():
        for key in ("value", *ARMS):
            if reading[key] is not None:
                shown[f"monitor/{name}/{key}"] = reading[key]
    return shown


def spent(run_folder: Path, n: int, price_per_device_hour: float) -> Scalars:
    """What a round cost, and the run up to it; empty where nothing was recorded.

    `cost/<stage>_seconds` are this round's, all attempts together. `cost/sampled_tokens`, `/trained_tokens`,
    `/evaluated_tokens`, `/flops`, `/device_hours` and, where the price is known, `/money` add up over rounds.
    """
    known = {key: cost for key, cost in costs.read(run_folder).items() if key[0] <= n}
    if not known:
        return {}
    total = costs.total(known.values())
    shown: Scalars = {f"cost/{stage}_seconds": cost.seconds for (r, stage), cost in known.items() if r == n}
    for name in ("sampled_tokens", "trained_tokens", "evaluated_tokens", "flops", "device_hours"):
        shown[f"cost/{name}"] = getattr(total, name)
    if price_per_device_hour:
        shown["cost/money"] = price_per_device_hour * total.device_hours
    return shown


def scalars(run_folder: Path, n: int, price_per_device_hour: float) -> Scalars:
    """What the folders of a round add to the metrics of its stages: its decision, if any, and its cost."""
    folder = run_folder / round_name(n) / "monitor"
    decision = decided(read_decision(folder)) if (folder / DECISION).is_file() else {}
    return decision | spent(run_folder, n, price_per_device_hour)


def chosen(prompt_ids: Iterable[str], count: int) -> list[str]:
    """So many prompts, the same ones in every round and every run: those whose ids' hashes come first."""
    return sorted(set(prompt_ids), key=lambda name: hashlib.sha256(name.encode()).digest())[:count]


def sample_rows(run_folder: Path, n: int) -> list[list[Any]]:
    """Rows of `COLUMNS`: the first sample of each chosen prompt, and what the filter said of it.

    Empty where the round drew none, as round 0. At most `PROMPTS_SHOWN` rows of about `CHARACTERS_SHOWN`.
    """
    samples = run_folder / round_name(n) / "sample" / SAMPLES
    dropped = run_folder / round_name(n) / "filter" / DROPPED
    if not samples.is_file() or not dropped.is_file():
        return []
    names = chosen(pq.read_table(samples, columns=["prompt_id"])["prompt_id"].to_pylist(), PROMPTS_SHOWN)
    reasons = {row.prompt_id: row.reason for row in read_rows(dropped, Dropped) if row.sample_index == 0}
    # Only these columns and rows: a round can hold gigabytes of token ids.
    table = pq.read_table(
        samples,
        columns=["prompt_id", "finish_reason", "text"],
        filters=[("prompt_id", "in", names), ("sample_index", "==", 0)],
    )
    rows = {row["prompt_id"]: row for row in table.to_pylist()}
    return [
        [
            n,
            name,
            rows[name]["finish_reason"],
            reasons.get(name, "kept"),
            shortened(rows[name]["text"], CHARACTERS_SHOWN),
        ]
        for name in names
    ]


def sections(names: Iterable[str]) -> Sections:
    """The drift panels for these metrics: by section, then by title, what is drawn against the round."""
    names = sorted(names)
    found: Sections = {
        "Monitors and their limits": {
            match[1]: [f"{match[0]}/{arm}" for arm in ARMS if f"{match[0]}/{arm}" in names]
            for name in names
            if (match := re.match(r"monitor/(\w+)(?=/t$)", name))
        },
        "What the model can do": {},
        "Variety and surprise": _alone(names, r"evaluate/(\w+_distinct_at_\d+|reference_\w+)"),
        "Levels of the monitors": _alone(names, r"monitor/(\w+)/value"),
        "Training": _alone(names, r"train/(loss_\w+|entropy_\w+|grad_\w+)"),
        "Samples": _alone(names, r"(?:sample|filter)/(truncated_share|mean_logprob|kept_share)"),
        "Cost": _alone(names, r"cost/(device_hours|money|flops|\w+_tokens)"),
    }
    for name in names:
        if match := re.fullmatch(r"evaluate/(\w+)_pass_at_\d+", name):
            found["What the model can do"].setdefault(f"{match[1]} pass@k", []).append(name)
    return {title: panels for title, panels in found.items() if panels}


def _alone(names: Iterable[str], pattern: str) -> dict[str, list[str]]:
    """A panel for each metric that the pattern fits, titled by the pattern's group."""
    return {match[1]: [name] for name in names if (match := re.fullmatch(pattern, name))}


def workspace(entity: str, project: str, name: str, run_id: str, metrics: Iterable[str]) -> Any:
    """A W&B workspace of one run's drift panels, not yet saved; it talks to nobody."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.reports.v2.interface import LinePlot

    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"{name}: drift by round",
        sections=[
            ws.Section(
                name=title,
                panels=[LinePlot(title=panel, x="round", y=[*y]) for panel, y in panels.items()],
                is_open=True,
            )
            for title, panels in sections(metrics).items()
        ],
        settings=ws.WorkspaceSettings(x_axis="round"),
        runset_settings=ws.RunsetSettings(filters=f"ID = '{run_id}'"),
    )
