"""The report's tables, as rows of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssd_loop import costs
from ssd_loop.figures import Difference, headline, points, rival, share
from ssd_loop.monitors.decision import Decision
from ssd_loop.report.trends import Trend

NONE = "-"
PLACES = ("forks", "locks")
AT_PLACES = {
    "entropy_nats": "entropy, nats",
    "support_tokens": "tokens that hold 95 % of the mass",
    "tail_mass": "mass outside of the 20 likeliest",
}


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        caption: What it shows.
        head: A heading for every column.
        rows: Cells of every row; the first one names the row.
        words: Columns that hold words, not numbers, by place.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = ()


def quality(reports: Mapping[int, Mapping[str, Any]]) -> Grid:
    """What each round's model can do."""
    found = {n: headline(report) for n, report in reports.items()}
    names = list(dict.fromkeys(name for report in found.values() for name in report))
    shown = [name for name in names if not name.endswith("_se") and name not in ("tokens", "reference_nll")]
    return Grid(
        "What each round's model can do, ± one standard error over problems",
        ["round", *(_heading(name) for name in shown)],
        [[str(n), *(_measured(report, name) for name in shown)] for n, report in found.items()],
    )


def _heading(name: str) -> str:
    shown = name.replace("_pass_at_", " pass@").replace("_distinct_at_", " distinct@").replace("_", " ")
    return f"{shown}, %" if _is_share(name) else shown


def _is_share(name: str) -> bool:
    return "pass_at" in name or name.endswith("_share")


def _measured(report: Mapping[str, Any], name: str) -> str:
    value = report.get(name)
    if value is None:
        return NONE
    if "_distinct_at_" in name:
        return f"{value:.3f}"
    error = report.get(f"{name}_se")
    return share(value, error) if _is_share(name) else number(value)


def decided(decisions: Sequence[Decision]) -> Grid:
    """What the monitors said after every round."""
    rows = [
        [
            str(d.round),
            d.verdict if d.kind == "none" else f"{d.verdict} ({d.kind})",
            str(d.best_round),
            d.reason,
        ]
        for d in decisions
    ]
    return Grid(
        "What the monitors said", ["round", "verdict", "best round so far", "reason"], rows, words=(1, 3)
    )


def readings(trends: Sequence[Trend]) -> Grid:
    """Every value of some monitors."""
    rounds = sorted({point.round for trend in trends for point in trend.points})
    rows = []
    for trend in trends:
        values = {point.round: point for point in trend.points}
        base = next((p.baseline for p in trend.points if p.baseline is not None), None)
        cells = [
            number(values[n].value) + (" alarm" if values[n].alarm else "") if n in values else NONE
            for n in rounds
        ]
        rows.append([trend.name, number(base), *cells])
    head = ["monitor", "round 0", *(str(n) for n in rounds)]
    return Grid("Every reading by round, in the monitor's unit", head, rows)


def gained(found: Mapping[str, Any]) -> Grid:
    """Every panel's and tier's paired difference."""
    rows = []
    for name, panel in found["panels"].items():
        named = [str(len(panel["gained"])), str(len(panel["lost"]))]
        rows.append([name, *_differences(panel["pass_at"]), *named])
        rows += [[f"{name}: {tier}", *_differences(of), "", ""] for tier, of in panel["tiers"].items()]
    head = [
        "panel: tier",
        "problems",
        "before",
        "after",
        "pass@1, points",
        "pass@k, points",
        "gained",
        "lost",
    ]
    return Grid("Paired differences with 95 % intervals", head, rows)


def _differences(pass_at: Mapping[str, Any]) -> list[str]:
    if not pass_at:
        return ["0", *[NONE] * 4]
    first, *more = (Difference(**value) for value in pass_at.values())
    k = list(pass_at)[-1]
    later = f"{points(more[0])} @{k}" if more else NONE
    return [str(first.problems), share(first.before), share(first.after), points(first), later]


def outcomes(found: Mapping[str, Any]) -> Grid:
    """How answers end, before and after."""
    rows = []
    for name, panel in found["panels"].items():
        for outcome, value in panel["outcomes"].items():
            if value:
                shift = Difference(**value)
                cells = [share(shift.before), share(shift.after), points(shift)]
                rows.append([f"{name}: {outcome.replace('_', ' ')}", *cells])
    return Grid("How answers end, % of answers", ["panel: outcome", "before", "after", "shift, points"], rows)


def arms(final: Mapping[str, Any]) -> Grid:
    """Base and best round on the untouched panel, by way of decoding."""
    rows = []
    for arm in dict.fromkeys([*final["base"], *final["trained"]]):
        sides = [final[side].get(arm) for side in ("base", "trained")]
        rows.append([arm, *(cell for side in sides for cell in _arm(side))])
    side = ["settings", "pass@1 %", "tokens"]
    head = [
        "decoding",
        *(f"base: {name}" for name in side),
        *(f"round {final['round']}: {name}" for name in side),
    ]
    return Grid("pass@1 by way of decoding, ± one standard error over problems", head, rows, words=(1, 4))


def _arm(arm: Mapping[str, Any] | None) -> list[str]:
    if arm is None:
        return [NONE] * 3
    rate = arm["pass_at_1"]
    rated = share(rate["mean"], rate["se"]) if rate else "not run"
    return [decoding(arm), rated, f"{arm['tokens']:,}"]


def decoding(point: Mapping[str, Any]) -> str:
    """Decoding settings in short."""
    return f"T {point['temperature']:g}, top-k {point['top_k'] or 'off'}, top-p {point['top_p']:g}"


def compared(final: Mapping[str, Any]) -> Grid:
    """The best round at its best decoding against every way of decoding the base."""
    rows = []
    for name, value in final["compared"].items():
        rows.append([rival(name), points(Difference(**value))])
    return Grid(
        f"Round {final['round']} at its best decoding against",
        ["rival", "points, [95 % paired interval]"],
        rows,
    )


def swept(sweeps: Mapping[int, Mapping[str, Any]]) -> Grid:
    """Held-out pass@1 at every point of the sweeps."""
    rows: dict[str, list[str]] = {}
    for place, sweep in enumerate(sweeps.values()):
        for point in sweep["points"]:
            rate = point["pass_at_1"]
            row = rows.setdefault(decoding(point), [NONE] * len(sweeps))
            row[place] = share(rate["mean"], rate["se"]) if rate else "not run"
    head = ["decoding", *(f"{_who(n)}, pass@1 %" for n in sweeps)]
    return Grid("Every point of the sweep", head, [[name, *cells] for name, cells in rows.items()])


def _who(n: int) -> str:
    return f"round {n}" if n else "base"


TOKENS = ("sampled", "trained", "evaluated", "scored")


def _cost_heads(ledger: Mapping[str, Any]) -> list[str]:
    money = ["money"] if ledger["price_per_device_hour"] else []
    return ["seconds", "device-hours", "busy", *(f"{kind} tokens" for kind in TOKENS), "FLOPs", *money]


def cost_by_round(ledger: Mapping[str, Any]) -> Grid:
    """What every round cost, and all of them."""
    rows = [[str(entry["round"]), *_cost(entry)] for entry in ledger["rounds"]]
    return Grid(
        "By round; prompt tokens are not counted",
        ["round", *_cost_heads(ledger)],
        [*rows, ["total", *_cost(ledger["total"])]],
    )


def cost_by_stage(ledger: Mapping[str, Any]) -> Grid:
    """What every stage cost over all rounds, with the attempts that were lost."""
    entries = [*ledger["stages"].items(), ("total", ledger["total"])]
    rows = [
        [
            name,
            *_cost(entry),
            str(entry["attempts"]),
            str(entry["failed"]),
            str(entry["killed"]),
            f"{entry['lost_seconds']:,.0f}",
        ]
        for name, entry in entries
    ]
    head = ["stage", *_cost_heads(ledger), "attempts", "failed", "killed or at work", "seconds of those"]
    return Grid("By stage; prompt tokens are not counted", head, rows)


def _cost(entry: Mapping[str, Any]) -> list[str]:
    told = costs.told(entry)
    tokens = [entry[f"{kind}_tokens"] for kind in TOKENS]
    return [
        *(told[name] for name in ("seconds", "device-hours", "busy")),
        *(f"{n:,}" if n else NONE for n in tokens),
        told["FLOPs"],
        *([] if entry["money"] is None else [told["money"]]),
    ]


def at_places(places: Mapping[int, Mapping[str, Any]]) -> list[Grid]:
    """Forks and locks by round, each against round 0 at the same positions."""
    grids = []
    for where in PLACES:
        rows = []
        for n, found in places.items():
            place = found[where]
            pairs = [[number(place[which][key]) for which in ("baseline", "current")] for key in AT_PLACES]
            capped = place["current"]["support_capped_share"]
            rows.append(
                [str(n), f"{place['positions']:,}", *(" → ".join(pair) for pair in pairs), share(capped)]
            )
        head = ["round", "positions", *AT_PLACES.values(), "positions counted as 21 tokens, %"]
        grids.append(Grid(f"{where.capitalize()}: round 0 → this round, means over positions", head, rows))
    return grids


def settings(rows: Iterable[tuple[str, Sequence[str]]], head: Sequence[str], caption: str) -> Grid:
    """Names and what they are."""
    found = [[name, *cells] for name, cells in rows]
    return Grid(caption, head, found, words=tuple(range(1, len(head))))


def number(value: float | None) -> str:
    """A number in four digits."""
    return NONE if value is None else f"{value:.4g}"
