"""Two runs side by side, in a page like the report's: ``rounds/RUN/compare-OTHER.html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ssd_loop import durable, finals
from ssd_loop.checkpoints import PROMPTS
from ssd_loop.errors import ConfigError
from ssd_loop.figures import Difference, points, rival
from ssd_loop.place import existing
from ssd_loop.report import account, grids, pictures, recipe
from ssd_loop.report.account import Account
from ssd_loop.report.grids import NONE, Grid
from ssd_loop.report.page import render
from ssd_loop.report.pictures import Curve, Interval
from ssd_loop.report.sections import GROUPS, interval
from ssd_loop.report.trends import Trend, trends

# Settings that decide how a round is measured: where they differ, levels cannot be held against each other.
MEASURING = ("evaluate.", "engine", "precision")


def write_comparison(root: Path, run: str, other: str, *, price_per_device_hour: float | None = None) -> Path:
    """Write a run beside another one; returns where it is.

    Args:
        root: Folder that holds ``rounds/`` and ``checkpoints/``.
        run: The run that gets the page.
        other: The run that it is held against.
        price_per_device_hour: In place of those that the runs were begun with.

    Raises:
        ConfigError: one of them is not there, or they have other base models or panels.
        BadArtifactError: a run.json is torn, so nothing tells whether they have.
    """
    if run == other:
        raise ConfigError(f"{run} cannot be compared with itself; name another run after --compare")
    abouts = [existing(root, name)[1] for name in (run, other)]
    price = {"price_per_device_hour": price_per_device_hour}
    pair = account.gather(root, run, **price), account.gather(root, other, **price)
    refuse_unlike(pair, abouts)
    path = pair[0].shelf.place.folder / f"compare-{other}.html"
    page = render("compare.html.j2", **context(pair))
    durable.write_bytes(path, page.encode("utf-8", "replace"))
    return path


def refuse_unlike(pair: Sequence[Account], abouts: Sequence[Mapping[str, Any]]) -> None:
    """Refuse two runs whose numbers say nothing of each other.

    A panel that only one of them measured is no reason: the others can be compared.

    Args:
        pair: The runs.
        abouts: What their run.json says.

    Raises:
        ConfigError: base model or panels differ; the sentence says which.
    """
    bases = [about.get("base_model", {}) for about in abouts]
    unlike = []
    if bases[0].get("content_hash") != bases[1].get("content_hash"):
        unlike.append(f"base model ({bases[0].get('title')}, {bases[1].get('title')})")
    tasks = [_panels(found, about) for found, about in zip(pair, abouts, strict=True)]
    changed = [name for name in tasks[0] if tasks[1].get(name, tasks[0][name]) != tasks[0][name]]
    if changed:
        unlike.append(f"problems of panel {', '.join(changed)}")
    if unlike:
        raise ConfigError(
            f"{pair[0].run} and {pair[1].run} cannot be compared, because they differ in "
            f"{' and '.join(unlike)}; compare runs of one model on the same panels"
        )


def _panels(found: Account, about: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprints of the problems of every panel that a run measured."""
    panels = {name: known for name, known in about.get("data", {}).items() if name != PROMPTS}
    final = found.shelf.stages.get((0, "final"))
    if final and (problems := final.manifest.inputs.get(finals.PANEL)):
        panels[finals.PANEL] = problems.fingerprint
    return panels


def context(pair: Sequence[Account]) -> dict[str, Any]:
    """Everything that the page shows."""
    settings = [
        recipe.flat(found.config.model_dump(mode="json", exclude={"rounds"})) if found.config else {}
        for found in pair
    ]
    made_with = [recipe.surroundings(found.shelf.about) for found in pair]
    names = [found.run for found in pair]
    return {
        "names": names,
        "model": pair[0].model,
        "verdicts": [account.verdict(found) for found in pair],
        "missing": [line for found in pair for line in found.shelf.missing],
        "settings": differing(settings, names, "Settings that differ"),
        "made_with": differing(made_with, names, "Made with, where that differs"),
        "unlike": _measured_otherwise([*settings, *made_with]),
        "groups": overlaid(pair),
        "gains": gains(pair),
        "final": final(pair),
        "cost": cost(pair),
    }


def differing(values: Sequence[Mapping[str, str]], names: Sequence[str], caption: str) -> Grid | None:
    """The names whose values differ, side by side; None where none do."""
    first, second = values
    keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    rows = [(key, (first.get(key, NONE), second.get(key, NONE))) for key in keys]
    return grids.settings(rows, ["setting", *names], caption) if rows else None


def _measured_otherwise(values: Sequence[Mapping[str, str]]) -> list[str]:
    """What differs of how rounds are measured."""
    settings, made_with = values[:2], values[2:]
    return [
        key
        for first, second in (settings, made_with)
        for key in first
        if key.startswith(MEASURING) and not key.startswith("engine.") and first[key] != second.get(key)
    ]


def overlaid(pair: Sequence[Account]) -> list[dict[str, Any]]:
    """Every monitor of either run over the rounds, both lines in one picture."""
    found = [{trend.name: trend for trend in trends(one.decisions) if trend.is_drawn} for one in pair]
    group_of = {name: trend.group for of in reversed(found) for name, trend in of.items()}
    groups = []
    for group, title in GROUPS.items():
        names = [name for name in group_of if group_of[name] == group]
        drawn = [(n, _both(n, [of.get(n) for of in found], [one.run for one in pair])) for n in names]
        if drawn:
            groups.append({"name": group, "title": title, "pictures": drawn})
    return groups


def _both(name: str, both: Sequence[Trend | None], runs: Sequence[str]) -> Markup:
    """A run without this monitor has a line without points, so that the other one keeps its colour."""
    told = [trend.points if trend else () for trend in both]
    lines = [
        Curve(run, [point.round for point in own], [point.value for point in own])
        for run, own in zip(runs, told, strict=True)
    ]
    return pictures.curves(lines, name=f"both-{name}", title=f"{name} by round", x_label="round")


def gains(pair: Sequence[Account]) -> dict[str, Any] | None:
    """Each run's paired gain over its own round 0, panel by panel."""
    if not all(found.gains for found in pair):
        return None
    measured = [(found, found.gains["panels"] if found.gains else {}) for found in pair]
    rows, cells = [], []
    for name in dict.fromkeys(name for _, panels in measured for name in panels):
        firsts = [panels.get(name, {}).get("pass_at", {}).get("1") for _, panels in measured]
        cells.append([name, *(points(Difference(**one)) if one else NONE for one in firsts)])
        rows += [
            interval(f"{name}: {found.run}", one, is_part=bool(place))
            for place, ((found, _), one) in enumerate(zip(measured, firsts, strict=True))
            if one
        ]
    head = ["panel", *(f"{found.run}, round {found.shown}" for found in pair)]
    return {
        "table": Grid("Gain in pass@1 over round 0, points, with 95 % paired intervals", head, cells),
        "forest": _forest(rows, "gains"),
    }


def final(pair: Sequence[Account]) -> dict[str, Any] | None:
    """Each run's final figures on the untouched panel; None where both lack them."""
    compared = [found.final["compared"] if found.final else {} for found in pair]
    rivals = list(dict.fromkeys(rival for of in compared for rival in of))
    if not rivals:
        return None
    cells = [
        [rival(r), *(points(Difference(**of[r])) if r in of else NONE for of in compared)] for r in rivals
    ]
    rows = [
        interval(found.run, of[account.BAR], is_part=bool(place))
        for place, (found, of) in enumerate(zip(pair, compared, strict=True))
        if account.BAR in of
    ]
    head = ["best round at its best decoding against", *(found.run for found in pair)]
    return {
        "table": Grid("On the untouched panel, points, with 95 % paired intervals", head, cells),
        "forest": _forest(rows, "final") if rows else None,
    }


def _forest(rows: Sequence[Interval], name: str) -> Markup:
    return pictures.forest(rows, name=name, title="Gain in pass@1", x_label="percentage points")


def cost(pair: Sequence[Account]) -> Grid:
    """What each run cost in all."""
    ledgers = [found.ledger for found in pair]
    rows = {
        "rounds": [str(found.rounds) for found in pair],
        "device-hours": [f"{ledger['total']['device_hours']:.3g}" for ledger in ledgers],
        "times one inference pass and one fine-tune": [
            grids.number(ledger["ratio_to_one_round"]) for ledger in ledgers
        ],
        "device-hours a point on the untouched panel": [
            grids.number(ledger["device_hours_per_point"]) for ledger in ledgers
        ],
        "best round": [NONE if found.best is None else str(found.best) for found in pair],
    }
    if any(ledger["price_per_device_hour"] for ledger in ledgers):
        rows["money"] = [grids.number(ledger["total"]["money"]) for ledger in ledgers]
        rows["money a point on the untouched panel"] = [
            grids.number(ledger["money_per_point"]) for ledger in ledgers
        ]
    return Grid(
        "In all", ["", *(found.run for found in pair)], [[name, *cells] for name, cells in rows.items()]
    )
