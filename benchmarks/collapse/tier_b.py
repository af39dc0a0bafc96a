"""Tier B of the collapse test bed: a tiny language model through the engine's own stages.

    python -m benchmarks.collapse.tier_b --out FOLDER [--modes C1,C2] [--healthy 60] [--seeds 3] [--rounds 6]

Runs what is not there yet: healthy controls with a seed each, then every mode with every seed. A finished run
is a file under FOLDER/results and is not done again; a run that was cut off goes on where it was. Writes
tier_b.json and tier_b.md after every run. Progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.collapse import scoring as s
from benchmarks.collapse.pages import table
from benchmarks.collapse.toy import data, engine, loop, model
from benchmarks.collapse.toy.modes import ALL, ONSET, Mode
from ssd_loop import store
from ssd_loop.place import Place

SEEDS, HEALTHY, ROUNDS = 3, 60, 6
FIRST_HEALTHY = 1000  # seed of the first healthy run
FIRST_MODE = 1  # seed of a mode's first run; doses were set on seed 0
RESULTS = "results"
MODE_HEAD = (
    *("Mode", "Runs", "Detected", "Alarm in round", "Delay from provocation", "Named right", "Names"),
    *("What fired", "Errors"),
)

Row = Mapping[str, Any]


def say(text: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def planned(modes: Sequence[str], healthy: int, seeds: int) -> list[tuple[Mode, int]]:
    """Every run: the controls in turn, each with a seed of its own, then seed by seed the modes."""
    controls = [mode for mode in ALL.values() if not mode.expected]
    runs = [(controls[i % len(controls)], FIRST_HEALTHY + i) for i in range(healthy)]
    return runs + [(ALL[key], seed) for seed in range(FIRST_MODE, FIRST_MODE + seeds) for key in modes]


def carry_out(out: Path, runs: Sequence[tuple[Mode, int]], rounds: int, toy: Path) -> None:
    """Do the runs that have no result yet; the report is written after each."""
    (out / RESULTS).mkdir(parents=True, exist_ok=True)
    data.write(out / "data")
    with engine.patched(out / "verdicts.jsonl"):
        for number, (mode, seed) in enumerate(runs, start=1):
            file = out / RESULTS / f"{mode.key}-s{seed}-r{rounds}.json"
            if file.is_file():
                continue
            say(f"run {number} of {len(runs)}: {mode.key} {mode.title}, seed {seed}")
            started = time.monotonic()
            try:
                found = loop.drive(out, mode, seed, rounds, toy, say)
            except Exception as error:  # one broken run is shown, tried again next time, and stops no night
                say(f"{mode.key} seed {seed} broke: {type(error).__name__}: {error}")
                continue
            found |= {"seconds": round(time.monotonic() - started, 1), "load": os.getloadavg()[0]}
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            partial.rename(file)
            shutil.rmtree(Place(out, f"{mode.key}-s{seed}").weights, ignore_errors=True)
            publish(out, rounds)


def publish(out: Path, rounds: int) -> None:
    """Write the report over all finished runs of so many rounds in the folder."""
    files = sorted((out / RESULTS).glob(f"*-r{rounds}.json"))
    done = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    report = reported(done, rounds)
    (out / "tier_b.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "tier_b.md").write_text(tables(report), encoding="utf-8")


def first_stop(row: Row, rounds: int) -> int:
    """The round of the first stop; one past the last if there was none."""
    stopped = [found["round"] for found in row["rounds"] if found["verdict"] == "stop"]
    return int(stopped[0]) if stopped else rounds + 1


def reported(done: Sequence[Row], rounds: int) -> dict[str, Any]:
    """Detection, delay from the provocation, attribution and false alarms."""
    by_key: dict[str, list[Row]] = {}
    for row in done:
        by_key.setdefault(row["mode"], []).append(row)
    ill = {key: _detected(ALL[key], rows, rounds) for key, rows in by_key.items() if ALL[key].expected}
    healthy = {key: _false_alarms(rows, rounds) for key, rows in by_key.items() if not ALL[key].expected}
    pooled = [row for key in healthy for row in by_key[key]]
    return {
        "rounds": rounds,
        "provoked_from": ONSET,
        "modes": dict(sorted(ill.items(), key=lambda item: int(item[0][1:]))),
        "healthy": dict(sorted(healthy.items())),
        "pooled": _false_alarms(pooled, rounds) if pooled else None,
        "seconds_per_round": _seconds(done),
        "load": float(np.mean([row["load"] for row in done])) if done else None,
    }


def _detected(mode: Mode, rows: Sequence[Row], rounds: int) -> dict[str, Any]:
    alarm = np.array([first_stop(row, rounds) for row in rows])
    onset = np.full(len(rows), mode.onset)  # of the provocation, not of the first true worsening
    last = [row["rounds"][-1] if row["rounds"] else {"attribution": "none", "alarms": []} for row in rows]
    names = [found["attribution"] for found in last]
    fired = Counter(
        name for found, at in zip(last, alarm, strict=True) if at <= rounds for name in found["alarms"]
    )
    return {
        "title": mode.title,
        **s.detection(alarm, onset, rounds),
        "alarm_rounds": [int(at) if at <= rounds else None for at in alarm],
        "attribution": s.named_right(names, alarm, mode.expected, rounds),
        "fired": dict(fired.most_common()),
        "errors": [row["error"] for row in rows if row["error"]],
    }


def _false_alarms(rows: Sequence[Row], rounds: int) -> dict[str, Any]:
    alarm = np.array([first_stop(row, rounds) for row in rows])
    stopped = [row for row, at in zip(rows, alarm, strict=True) if at <= rounds]
    what = [f"{row['mode']}-s{row['seed']} {_last_words(row['rounds'][-1])}" for row in stopped]
    errors = [row["error"] for row in rows if row["error"]]
    return {**s.false_alarms(alarm, rounds), "alarms_of": what, "errors": errors}


def _last_words(found: Row) -> str:
    return f"round {found['round']}: {found['attribution']} ({', '.join(found['alarms'])})"


def _seconds(done: Sequence[Row]) -> dict[str, float]:
    """Mean seconds of a round and of its stages, and the 90th percentile; shared healthy rounds left out."""
    rounds = [
        found["seconds"]
        for row in done
        for found in row["rounds"]
        if not ALL[row["mode"]].expected or found["round"] >= ONSET
    ]
    if not rounds:
        return {}
    stages = sorted({stage for spent in rounds for stage in spent})
    totals = [sum(spent.values()) for spent in rounds]
    means = {stage: float(np.mean([spent.get(stage, 0.0) for spent in rounds])) for stage in stages}
    return {"round": float(np.mean(totals)), "round_p90": float(np.quantile(totals, 0.9)), **means}


def tables(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    rounds, seconds = report["rounds"], report["seconds_per_round"]
    parts = [
        "# Collapse test bed, tier B: a real tiny model\n",
        f"Runs of {rounds} rounds, provoked from round {report['provoked_from']} on; a run ends at its first "
        f"stop. {seconds.get('round', 0.0):.1f} s a round at a load of {report['load'] or 0.0:.1f}.\n",
        "## Detection\n",
        table(
            MODE_HEAD,
            [_mode_row(key, mode) for key, mode in report["modes"].items()],
        ),
        "## False alarms of healthy runs\n",
        table(
            ["Control", "Alarms", "95 % limits", "Which", "Errors"],
            [_healthy_row(key, row) for key, row in report["healthy"].items()]
            + ([_healthy_row("all", report["pooled"])] if report["pooled"] else []),
        ),
    ]
    return "\n".join(parts)


def _mode_row(key: str, mode: Row) -> list[str]:
    counted = mode["runs"] - mode["early"]
    delays = [at - ONSET for at in mode["alarm_rounds"] if at is not None and at >= ONSET]
    named = mode["attribution"]
    return [
        f"{key} {mode['title']}",
        str(mode["runs"]) + (f", {mode['early']} early" if mode["early"] else ""),
        f"{len(delays)} of {counted}",
        ", ".join("-" if at is None else str(at) for at in mode["alarm_rounds"]),
        f"{np.mean(delays):.1f}" if delays else "-",
        "-" if named["right"] is None else f"{100 * named['right']:.0f} % ({named['expected']})",
        ", ".join(f"{name} {count}" for name, count in named["names"].items()) or "-",
        ", ".join(f"{name} {count}" for name, count in mode["fired"].items()) or "-",
        "; ".join(mode["errors"]) or "-",
    ]


def _healthy_row(key: str, row: Row) -> list[str]:
    title = f"{key} {ALL[key].title}" if key in ALL else key
    limits = f"{100 * row['low']:.1f} % to {100 * row['high']:.1f} %"
    which, errors = "; ".join(row["alarms_of"]) or "-", "; ".join(row["errors"]) or "-"
    return [title, f"{row['alarms']} of {row['runs']}", limits, which, errors]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    import torch

    known = [key for key, mode in ALL.items() if mode.expected]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results")
    parser.add_argument("--modes", default=",".join(known), help="comma-separated, such as C1,C2; none: ''")
    parser.add_argument("--healthy", type=int, default=HEALTHY, help="healthy runs, controls in turn")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs of each mode")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="at most, in each run")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    given = parser.parse_args(arguments)
    modes = [key for key in given.modes.split(",") if key]
    if unknown := [key for key in modes if key not in ALL]:
        parser.error(f"no such mode: {', '.join(unknown)}; there are {', '.join(ALL)}")
    torch.set_num_threads(given.threads)
    runs = planned(modes, given.healthy, given.seeds)
    out = given.out.resolve()
    toy = model.build(say=say).resolve()
    with store.run_lock(out):
        carry_out(out, runs, given.rounds, toy)
        publish(out, given.rounds)
    say(f"written to {out}")


if __name__ == "__main__":
    main()
