"""Does the signal before training foretell the gain of round 1? Rank correlation over (recipe, tier) cells.

    python -m benchmarks.collapse.signal_gain RUN [RUN ...] [--root FOLDER] [--tiers 3]

A recipe is a run; runs may share their round 0. Tiers are thirds of the held-out problems by pass rate.
Round 0 has at least four sets of samples, and no set is used twice: the first labels the tiers, the second
gives the signal, the rest is what the gain is measured from. Else chance in one number would be chance in
the other.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ssd_loop import evaluation
from ssd_loop.config_file import load
from ssd_loop.monitors import signal
from ssd_loop.monitors.draws import Draws, collect
from ssd_loop.place import existing
from ssd_loop.records import Result, Trait, read_rows

PANEL = "heldout"
NAMES = ("pass_at_1", "headroom", "modal_gain", "wrong_agreement", "self_judgement")


def looked(folder: Path) -> tuple[list[Result], list[Trait], dict[tuple[str, int], bool]]:
    """A finished evaluation's held-out answers."""
    results = [row for row in read_rows(folder / evaluation.RESULTS, Result) if row.panel == PANEL]
    traits = [row for row in read_rows(folder / evaluation.TRAITS, Trait) if row.panel == PANEL]
    return results, traits, {(row.problem_id, row.sample_index): True for row in results}


def cells(root: Path, run: str, tiers: int) -> list[dict[str, Any]]:
    """Signal and round-1 gain of each tier of one run."""
    place, about = existing(root, run)
    size = load(None, {}, about["config"]).evaluate.counts[PANEL]
    _, (before, after) = collect([looked(place.stage(n, "evaluate")) for n in (0, 1)])
    label, told, base = before.part(0, size), before.part(size, 2 * size), before.part(2 * size, None)
    rank = stats.rankdata(label.passed.mean(axis=1), method="ordinal") - 1
    tier = rank * tiers // before.problems
    return [{"run": run, "tier": t, **_cell(told, base, after, tier == t)} for t in range(tiers)]


def _cell(told: Draws, base: Draws, after: Draws, rows: Any) -> dict[str, Any]:
    own = told.over(lambda array: array[rows])
    found = signal.measure(own, ["all"] * own.problems)
    change = after.passed[rows].mean(axis=1) - base.passed[rows].mean(axis=1)
    error = float(change.std(ddof=1) / np.sqrt(len(change)))
    values = {name: found[name]["value"] for name in NAMES}
    return {"label": found["label"], **values, "gain": float(change.mean()), "gain_se": error}


def correlations(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation of every number of the signal with the gain, and its p-value."""
    out = {}
    for name in NAMES:
        pairs = [(row[name], row["gain"]) for row in found if row[name] is not None]
        if len(pairs) > 2:
            rho, p = stats.spearmanr(*zip(*pairs, strict=True))
            out[name] = {"cells": len(pairs), "rho": float(rho), "p": float(p)}
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--root", type=Path, default=Path(), help="folder that holds rounds/")
    parser.add_argument("--tiers", type=int, default=3)
    given = parser.parse_args(arguments)
    found = [cell for run in given.runs for cell in cells(given.root, run, given.tiers)]
    print(json.dumps({"cells": found, "correlations": correlations(found)}, indent=1))


if __name__ == "__main__":
    main()
