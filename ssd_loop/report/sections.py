"""The report's sections: each one a run's facts as pictures and tables, or None where there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ssd_loop.figures import rival
from ssd_loop.report import grids, pictures, recipe
from ssd_loop.report.account import Account
from ssd_loop.report.grids import Grid
from ssd_loop.report.pictures import Curve, Interval
from ssd_loop.report.trends import Trend

GROUPS = {
    "harm": "Harm: what the model can do",
    "collapse": "Collapse: how varied it still is",
    "guard": "Guards: hard limits",
    "report": "Reported: never decided on",
}


def drawn_trends(found: Sequence[Trend]) -> list[dict[str, Any]]:
    """The trends by group, each with its picture where it has a value."""
    groups = []
    for group, title in GROUPS.items():
        own = [trend for trend in found if trend.group == group]
        if own:
            shown = [(t, pictures.trend(t, name=f"trend-{t.name}") if t.is_drawn else None) for t in own]
            groups.append({"name": group, "title": title, "trends": shown, "table": grids.readings(own)})
    return groups


def gains(found: Account) -> dict[str, Any] | None:
    """Where the gain is: intervals by panel and tier, how answers end, problems by name."""
    measured = found.gains
    if measured is None or not measured["panels"]:
        return None
    transfer, shifts = [], []
    for name, panel in measured["panels"].items():
        if panel["pass_at"]:
            transfer.append(interval(name, panel["pass_at"]["1"]))
            transfer += [
                interval(f"{name}: {tier}", of["1"], is_part=True) for tier, of in panel["tiers"].items()
            ]
        shifts += [
            interval(f"{name}: {outcome.replace('_', ' ')}", shift)
            for outcome, shift in panel["outcomes"].items()
            if shift and outcome != "passed"
        ]
    against = f"round {found.shown} minus round 0, percentage points"
    return {
        "round": found.shown,
        "is_best": bool(found.best),
        "verdict": measured["verdict"],
        "forest": pictures.forest(transfer, name="transfer", title="Gain in pass@1", x_label=against),
        "table": grids.gained(measured),
        "shift": pictures.forest(shifts, name="outcomes", title="Shift of outcomes", x_label=against)
        if shifts
        else None,
        "outcomes": grids.outcomes(measured),
        "named": [
            (name, way, [_change(row) for row in panel[way]])
            for name, panel in measured["panels"].items()
            for way in ("gained", "lost")
            if panel[way]
        ],
    }


def interval(label: str, value: Mapping[str, Any], *, is_part: bool = False) -> Interval:
    """A stored difference of shares as a row of a forest plot, in points."""
    low, high = (None if value[end] is None else 100 * value[end] for end in ("low", "high"))
    return Interval(label, 100 * value["mean"], low, high, is_part)


def _change(row: Mapping[str, Any]) -> str:
    (right, drawn), (now, of) = row["before"], row["after"]
    return f"{row['problem']}: {right} of {drawn} → {now} of {of}"


def baselines(found: Account) -> dict[str, Any]:
    """What decoding alone buys: sweep curves, and the arms on the untouched panel."""
    final = found.final
    return {
        "sweeps": sweep_curves(found.sweeps),
        "table": grids.swept(found.sweeps) if found.sweeps else None,
        "final": None
        if final is None
        else {
            "panel": final["panel"],
            "problems": final["problems"],
            "arms": grids.arms(final),
            "compared": grids.compared(final),
            "forest": pictures.forest(
                [interval(rival(name), value) for name, value in final["compared"].items()],
                name="rivals",
                title=f"Round {final['round']} at its best decoding against each way of decoding the base",
                x_label="percentage points of pass@1",
            ),
        },
    }


def sweep_curves(sweeps: Mapping[int, Mapping[str, Any]]) -> list[tuple[str, Markup]]:
    """pass@1 against temperature, one picture for each truncation, base and best round in it."""
    points = {n: [p for p in sweep["points"] if p["pass_at_1"]] for n, sweep in sweeps.items()}
    every = [point for own in points.values() for point in own]
    # The same axes in all pictures: they are compared.
    ends = [(p["pass_at_1"]["mean"] + sign * p["pass_at_1"]["se"]) * 100 for p in every for sign in (1, -1)]
    spans = {"x_span": [p["temperature"] for p in every], "y_span": ends}
    drawn = []
    for top_k, top_p in sorted({(p["top_k"], p["top_p"]) for p in every}):
        title = f"top-k {top_k or 'off'}, top-p {top_p:g}"
        lines = []
        for n, measured in points.items():
            own = [p for p in measured if (p["top_k"], p["top_p"]) == (top_k, top_p)]
            own.sort(key=lambda point: point["temperature"])
            rates = [point["pass_at_1"] for point in own]
            lines.append(
                Curve(
                    f"round {n}" if n else "base",
                    [point["temperature"] for point in own],
                    [100 * rate["mean"] for rate in rates],
                    [100 * rate["se"] for rate in rates],
                )
            )
        picture = pictures.curves(
            lines,
            name=f"sweep-{top_k}-{top_p:g}".replace(".", "_"),
            title=f"Held-out pass@1 in per cent by temperature, {title}",
            x_label="temperature",
            **spans,
        )
        drawn.append((title, picture))
    return drawn


def cost(found: Account) -> dict[str, Any] | None:
    """What the run cost, by round and by stage, and what a point cost."""
    ledger = found.ledger
    if not ledger["rounds"]:
        return None
    return {
        "by_round": grids.cost_by_round(ledger),
        "by_stage": grids.cost_by_stage(ledger),
        "ledger": ledger,
    }


def places(found: Account) -> dict[str, Any] | None:
    """Forks and locks over the rounds, against round 0."""
    if not found.places:
        return None
    rounds = range(min(found.places), max(found.places) + 1)
    drawn = []
    for where in grids.PLACES:
        for key, title in grids.AT_PLACES.items():
            lines = [
                Curve(
                    label,
                    rounds,
                    [found.places[n][where][which][key] if n in found.places else None for n in rounds],
                )
                for label, which in (("this round", "current"), ("round 0", "baseline"))
            ]
            values = [value for line in lines for value in line.y if value is not None]
            # At least a tenth of the level to either side: less than that is no story.
            levels = [0.9 * min(values), 1.1 * max(values)] if values else []
            picture = pictures.curves(
                lines,
                name=f"place-{where}-{key}",
                title=f"{where}: {title}",
                x_label="round",
                y_span=levels,
            )
            drawn.append((f"{where}: {title}", picture))
    return {"pictures": drawn, "tables": grids.at_places(found.places)}


def settings(found: Account) -> dict[str, Grid | None]:
    """The settings beside the paper's, all of them, and what they were run with."""
    about = found.shelf.about
    tables: dict[str, Grid | None] = {"paper": None, "all": None, "made_with": None}
    if found.config:
        rows = recipe.departures(found.config, found.rounds)
        named = [(r.setting, (r.here, r.paper, "same" if r.is_same else "differs", r.source)) for r in rows]
        tables["paper"] = grids.settings(
            named,
            ["setting", "this run", "paper", "this is", "where in the paper"],
            "Beside arXiv 2604.01193",
        )
        values = recipe.flat(found.config.model_dump(mode="json", exclude={"rounds"}))
        tables["all"] = grids.settings(
            [(name, (value,)) for name, value in values.items()], ["setting", "value"], "Every setting"
        )
    if about:
        values = recipe.surroundings(about)
        tables["made_with"] = grids.settings(
            [(name, (value,)) for name, value in values.items()], ["what", "value"], "Made with"
        )
    return tables
