"""The state of a run, read from its files alone: which stages are finished and what they measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ssd_loop import costs, store
from ssd_loop.config import MonitorConfig, RunConfig
from ssd_loop.config_file import load
from ssd_loop.errors import BadArtifactError
from ssd_loop.figures import REPORT, headline, read_report, share, signal_lines
from ssd_loop.monitors.decision import DECISION, read_decision
from ssd_loop.place import ONLY_WHERE_ASKED, RUN_FILE, STAGES, Place, existing, round_name
from ssd_loop.report import facts, outcome

NOT_ASKED = (
    "whether decoding alone would have done it was not asked: the same command with --baselines.temperatures "
    "'[0.2, 0.6, 1.0]' measures it"
)
ONCE_ENDED = "whether decoding alone would have done it is measured when the run ends"
BEST_MEANS = "best: the highest lower bound (95 %) of the paired held-out gain over round 0, if it is above 0"


def read(root: Path, name: str) -> dict[str, Any]:
    """Everything that the table shows, as plain data.

    Raises:
        ConfigError: there is no such run.
    """
    place, about = existing(root, name)
    try:
        model, engine = about["base_model"], about["engine"]
        title, dtype = model["title"], model["dtype"]
    except (KeyError, TypeError):
        raise BadArtifactError(f"{place.folder / RUN_FILE} is torn; restore it") from None
    spent = costs.read(place.folder)
    config = load(None, {}, about["config"])
    best = place.best
    return {
        "run": name,
        "model": title,
        "engine": engine,
        "dtype": dtype,
        "choices": choices(about, config),
        "has_baselines": config.has_baselines,
        "parent": about.get("parent"),
        "changes": about.get("changes", []),
        "rounds": [_round(place, n, spent) for n in place.known_rounds()],
        "best": None if best is None else round_name(best),
        **_bought(place, best),
        "seconds": round(sum(cost.seconds for cost in spent.values()), 1),
    }


def _bought(place: Place, best: int | None) -> dict[str, Any]:
    """What the best round gained; a damaged file is named and hides nothing else."""
    try:
        gained = facts.gains_of(place, best) if best else None
        final = facts.final_of(place, best) if best else None
    except BadArtifactError as error:
        return {"gains": None, "final": None, "damaged": str(error)}
    return {"gains": gained, "final": final, "damaged": None}


def choices(about: Mapping[str, Any], config: RunConfig) -> list[str]:
    """What kind of loop this is, one line each: weights, data, and where the run started."""
    train, sample = config.train, config.sample
    lines = [
        f"samples drawn by the {_whose(sample.policy)}; each adapter trained on the "
        f"{_whose(train.start_from)}; data: {train.data_policy}, {train.human_share:.0%} human-written",
        _budget(config.monitor),
    ]
    if parent := about.get("parent"):
        changes = "; ".join(about.get("changes", [])) or "no setting changed"
        lines.append(f"started from {parent['run']}@{parent['round']}: {changes}")
    return lines


def _budget(config: MonitorConfig) -> str:
    """What the false-alarm rate means in this run."""
    noise = (
        f"noise between training seeds is covered by {config.seed_trainings} extra trainings"
        if config.seed_trainings
        else "it covers sampling noise only: noise between training seeds was not measured"
    )
    return (
        f"monitors: at most {config.false_alarm_rate:.0%} false alarms in {config.horizon} rounds, then a "
        f"new budget; {noise}"
    )


def _whose(policy: str) -> str:
    return "base" if policy == "base" else "previous round's weights"


def spans(rounds: Sequence[int]) -> str:
    """Round numbers as text: 1 to 3, 5."""
    parts: list[list[int]] = []
    for n in rounds:
        if parts and parts[-1][-1] == n - 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _round(place: Place, n: int, spent: dict[tuple[int, str], costs.Cost]) -> dict[str, Any]:
    stages: dict[str, Any] = {}
    result: dict[str, Any] = {"round": n, "stages": stages}
    for stage in STAGES if n else ("evaluate", "sweep", "final"):
        folder = place.stage(n, stage)
        done = store.finished(folder)
        cost = spent.get((n, stage), costs.Cost())
        state = "finished" if done else "partial" if store.partial_of(folder).exists() else "absent"
        if state == "absent" and stage in ONLY_WHERE_ASKED:
            continue
        if done and store.pruned(done):
            state = "pruned"
        stages[stage] = {
            "state": state,
            "seconds": round(cost.seconds, 1),
            "attempts": cost.attempts,
            "metrics": done.manifest.metrics if done else {},
        }
        if done and stage == "evaluate":
            report = read_report(store.checked_in(done, REPORT))
            result["report"] = headline(report)
            if found := report.get("signal"):
                result["signal"] = found
        if done and stage == "monitor":
            decision = read_decision(store.checked_in(done, DECISION))
            result |= {
                "verdict": decision.verdict,
                "reason": decision.reason,
                "attribution": decision.attribution,
                "monitors": decision.to_json()["monitors"],
            }
    return result


def console() -> Console:
    """Standard output; wide enough for the tables where it is not a terminal."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=120)


def show(state: dict[str, Any], console: Console) -> None:
    """Print the run as tables."""
    console.print()
    console.print(
        f"run {state['run']}: {state['model']}, {state['engine']}, {state['dtype']}; "
        f"{state['seconds']:.0f} s so far; best: {_best(state)}",
        markup=False,
    )
    for line in state["choices"]:
        console.print(line, markup=False)
    if state["best"]:
        console.print(BEST_MEANS, markup=False)
    for row in state["rounds"]:
        for line in signal_lines(row["signal"]) if "signal" in row else ():
            console.print(line, markup=False)
    console.print(_quality(state))
    if state["damaged"]:
        console.print(f"what it bought cannot be told: {state['damaged']}", markup=False)
    if state["gains"]:
        outcome.show_gains(state["gains"], console)
    if state["final"]:
        outcome.show_final(state["final"], console)
    elif state["gains"]:
        console.print(ONCE_ENDED if state["has_baselines"] else NOT_ASKED, markup=False)
    console.print(_work(state))
    for row in state["rounds"]:
        if "verdict" in row:
            console.print(f"round {row['round']}: {row['verdict']} - {row['reason']}", markup=False)


def _best(state: dict[str, Any]) -> str:
    """The best round, and whether it is the one that the run was stopped for."""
    name: str = state["best"] or "not decided yet"
    decided = [row for row in state["rounds"] if "verdict" in row]
    is_stopped = bool(decided) and decided[-1]["verdict"] == "stop"
    if is_stopped and name == round_name(decided[-1]["round"]):
        return f"{name}, the very round that the monitors stop at"
    return name


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
        return share(value, report[f"{name}_se"])
    return f"{value:.3f}"


def _work(state: dict[str, Any]) -> Table:
    table = Table(title="What each stage took", title_justify="left")
    table.add_column("round", justify="right")
    taken = {name for row in state["rounds"] for name in row["stages"]}
    shown = [stage for stage in STAGES if stage in taken or stage not in ONLY_WHERE_ASKED]
    for stage in shown:
        table.add_column(stage, justify="right")
    for row in state["rounds"]:
        table.add_row(str(row["round"]), *(_stage_cell(row["stages"].get(s)) for s in shown))
    return table


def _stage_cell(stage: dict[str, Any] | None) -> str:
    if stage is None or stage["state"] == "absent":
        return "-"
    if stage["state"] == "partial":
        return "unfinished"
    metrics = stage["metrics"]
    tokens = metrics.get("tokens") or metrics.get("tokens_trained") or metrics.get("kept_tokens")
    # A stage that this run never attempted was handed over by the run that it started from.
    parts = [f"{tokens:,} tok"] if tokens else []
    parts.append(f"{stage['seconds']:.0f} s" if stage["attempts"] else "copied")
    return ", ".join([*parts, *(["pruned"] if stage["state"] == "pruned" else [])])
