"""What a run bought, as tables: sweeps, the untouched panel, and where the gain is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ssd_loop.figures import CHOSEN, Difference, points, rival, share

WIDTH = 24  # of a bar that stands for the best point


def show_sweep(found: Mapping[str, Any], console: Console) -> None:
    """Print held-out pass@1 at every point, the best marked."""
    table = Table(
        title=f"{found['panel']} pass@1 by decoding settings, {found['samples_per_problem']} answers a "
        "problem (± standard error over problems)",
        title_justify="left",
    )
    for name in ("temperature", "top-k", "top-p", "pass@1 %", "tokens"):
        table.add_column(name, justify="right")
    table.add_column("")
    rated = [row["pass_at_1"]["mean"] for row in found["points"] if row["pass_at_1"]]
    most = max(rated, default=0.0)
    for row in found["points"]:
        rate = row["pass_at_1"]
        shown = share(rate["mean"], rate["se"]) if rate else "not run"
        bar = "█" * round(WIDTH * rate["mean"] / most) if rate and most else ""
        table.add_row(
            f"{row['temperature']:g}",
            str(row["top_k"] or "off"),
            f"{row['top_p']:g}",
            shown,
            f"{row['tokens']:,}",
            bar,
        )
    console.print(table)


def show_final(final: Mapping[str, Any], console: Console) -> None:
    """Print the comparison on the untouched panel, if there is one."""
    table = Table(
        title=f"On {final['panel']}: {final['problems']} problems that nothing was tuned on (± standard "
        "error)",
        title_justify="left",
    )
    table.add_column("decoding")
    for name in ("base pass@1 %", "tokens", f"round {final['round']} pass@1 %", "tokens"):
        table.add_column(name, justify="right")
    for arm in dict.fromkeys([*final["base"], *final["trained"]]):
        cells = [cell for side in ("base", "trained") for cell in _arm(final[side].get(arm))]
        table.add_row(arm, *cells)
    console.print(table)
    for name, difference in final["compared"].items():
        against = f"round {final['round']} against {rival(name)}"
        console.print(f"  {against}: {points(Difference(**difference))}", markup=False)


def _arm(arm: Mapping[str, Any] | None) -> tuple[str, str]:
    if arm is None or arm["pass_at_1"] is None:
        return "-", "-"
    rate = arm["pass_at_1"]
    return share(rate["mean"], rate["se"]), f"{arm['tokens']:,}"


def show_gains(found: Mapping[str, Any], console: Console) -> None:
    """Print every panel's and tier's difference with its interval, and the verdict."""
    table = Table(title="Where the gain is (points, [95 % paired interval])", title_justify="left")
    table.add_column("panel")
    table.add_column("tier")
    for name in ("problems", "pass@1", "pass@k", "gained", "lost"):
        table.add_column(name, justify="right")
    for name, panel in found["panels"].items():
        table.add_row(name, "all", *_differences(panel["pass_at"]), *_named(panel))
        for tier, pass_at in panel["tiers"].items():
            table.add_row("", tier, *_differences(pass_at), "", "")
    console.print(table)
    console.print(f"{found['verdict']}; {CHOSEN}", markup=False)


def _differences(pass_at: Mapping[str, Any]) -> tuple[str, str, str]:
    if not pass_at:
        return "0", "-", "-"
    first, *more = (f"{points(Difference(**value))} @{k}" for k, value in pass_at.items())
    return str(pass_at["1"]["problems"]), first.removesuffix(" @1"), more[0] if more else "-"


def _named(panel: Mapping[str, Any]) -> tuple[str, str]:
    return str(len(panel["gained"])), str(len(panel["lost"]))
