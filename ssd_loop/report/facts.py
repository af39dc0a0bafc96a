"""What a run's files say of what it bought, for tables, report and model card alike.

What computes it is imported where it is needed: `status` of a run that has won nothing yet needs none of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssd_loop import store
from ssd_loop.figures import read_report
from ssd_loop.place import Place


def gains_of(place: Place, n: int) -> dict[str, Any] | None:
    """Where round n's gain over round 0 is (`gains.measure`); None where one of them is not measured."""
    folders = [place.stage(0, "evaluate"), place.stage(n, "evaluate")]
    if not n or not all(store.finished(folder) for folder in folders):
        return None
    from ssd_loop import evaluation, gains
    from ssd_loop.records import Result, read_rows

    before, after = (
        read_rows(_whole(folder, evaluation.RESULTS) / evaluation.RESULTS, Result) for folder in folders
    )
    panels = read_report(folders[1])["panels"]
    return gains.measure(before, after, {name: panel.get("tier_of", {}) for name, panel in panels.items()})


def final_of(place: Place, n: int) -> dict[str, Any] | None:
    """Base and round n on the untouched panel, and the differences; None where that was not measured."""
    folders = [place.stage(0, "final"), place.stage(n, "final")]
    if not n or not all(store.finished(folder) for folder in folders):
        return None
    from ssd_loop import finals

    base, trained = (finals.read(_whole(folder, finals.FINAL)) for folder in folders)
    return {
        "panel": base["panel"],
        "problems": base["problems"],
        "round": n,
        "base": base["arms"],
        "trained": trained["arms"],
        "compared": finals.compared(base, trained),
    }


def sweeps_of(place: Place, n: int) -> dict[int, dict[str, Any]]:
    """The sweeps of round 0 and round n, as far as they are there."""
    from ssd_loop import sweeping

    found = {r: place.stage(r, "sweep") for r in dict.fromkeys((0, n))}
    return {r: sweeping.read(folder) for r, folder in found.items() if store.finished(folder)}


def _whole(folder: Path, *names: str) -> Path:
    """A finished stage's folder, some of its files compared with their manifest; see `store.checked_in`."""
    done = store.finished(folder)
    assert done is not None
    return store.checked_in(done, *names)
