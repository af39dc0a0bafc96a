"""The report as Markdown tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OURS = "this rule"
HIGHLIGHT, GREY = "#c1272d", "#8a8a8a"
OTHERS = ("#0072b2", "#e69f00", "#009e73", "#56b4e9", "#cc79a7", "#6a51a3", "#8c6d31", "#1b1b1b", "#7fbc41")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def tables(report: Mapping[str, Any]) -> str:
    """All tables."""
    parts = [
        f"# Collapse test bed, tier A (seed {report['seed']})\n",
        "## False alarms per 10-round run of healthy controls, one shared limit\n",
        _healthy(report),
        "## What the monitors on samples can tell apart\n",
        _resolution(report),
        "## Detection at the dose that is twice the margin two rounds after the provocation\n",
        _modes(report),
        "## Dose-response: share detected / mean delay\n",
        _doses(report),
        "## All rules at the same false-alarm rate (5 % of the pooled controls)\n",
        _rules(report, "tuned"),
        "## All rules, tuned on the controls in which nothing changes (H0, H5)\n",
        _rules(report, "tuned_still"),
        "## All rules with their habitual bounds\n",
        _rules(report, "habitual"),
        "## Mean delay by mode, all rules tuned to the same rate\n",
        _by_mode(report),
        "## Ablations\n",
        _ablations(report),
        "## What is missed or later without one monitor or guard\n",
        _left_out(report),
    ]
    return "\n".join(parts)


def _healthy(report: Mapping[str, Any]) -> str:
    own = report["replayed"]["controls"]
    rows = []
    for key, row in report["false_alarms"].items():
        other = own[key]
        rows.append(
            [
                f"{key} {row['title']}",
                f"{row['alarms']} of {row['runs']}",
                f"{_share(row['low'])} to {_share(row['high'])}",
                _share(row["second_looks"]),
                f"{other['alarms']} of {other['runs']}",
                f"{_share(other['low'])} to {_share(other['high'])}",
            ]
        )
    lines: list[tuple[str, Any, Any]] = [
        ("H1 without the seed-noise term", report["h1_without_seed_term"], None)
    ]
    lines += [
        (f"H0, {name} at its edge", row, report["replayed"]["edges"].get(name))
        for name, row in report["edges"].items()
    ]
    for label, rows_of in report["h1_edges"].items():
        lines += [
            (f"H1, {name} at its edge, {label.replace('_', ' ')}", row, None) for name, row in rows_of.items()
        ]
    for title, row, other in lines:
        cells = [title, f"{row['alarms']} of {row['runs']}"]
        cells += [f"{_share(row['low'])} to {_share(row['high'])}", "-"]
        if other:
            cells += [f"{other['alarms']} of {other['runs']}"]
            cells += [f"{_share(other['low'])} to {_share(other['high'])}"]
        else:
            cells += ["-", "-"]
        rows.append(cells)
    head = ["Control", "Alarms", "95 % limits", "Second looks per round", "Own null replay", "95 % limits"]
    return table(head, rows)


def _resolution(report: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            f"{row['margin']:g}",
            f"{row['se']:.4f}",
            f"{row['se_two_looks']:.4f}",
            _number(row["needed"], 1),
        ]
        for name, row in report["resolution"].items()
    ]
    return table(["Monitor", "Margin", "SE, one look", "SE, two looks", "Half alarm at, margins"], rows)


def _modes(report: Mapping[str, Any]) -> str:
    rows = []
    for key, mode in report["modes"].items():
        at = mode["by_dose"]["1.0"]
        names = ", ".join(f"{name} {count}" for name, count in at["attribution"]["names"].items())
        rows.append(
            [
                f"{key} {mode['name']}",
                f"{mode['dose']:.3g} ({mode['dose_unit']})" + ("" if mode["dose_exists"] else ", largest"),
                f"{mode['quantity']} {mode['margin']:.3g}",
                _number(at["onset"], 0),
                _share(at["detected"]),
                f"{_number(at['delay_median'], 0)} / {_number(at['delay_p90'], 0)} / "
                f"{_number(at['delay_mean'])}",
                f"{_number(at['tuned']['delay_median'], 0)} / {_number(at['tuned']['delay_mean'])}",
                f"{_share(at['attribution']['right'])} ({names})",
                f"{_number(100 * at['points_lost']['at_alarm'], 1)} / "
                f"{_number(100 * at['points_lost']['without_stop'], 1)}",
                _number(1.0 + 3.0 * at["second_looks"]),
            ]
        )
    head = [
        "Mode",
        "Dose",
        "Declared quantity, margin",
        "Onset",
        "Detected",
        "Delay median / p90 / mean",
        "Tuned: median / mean",
        "Named right (names)",
        "Points lost at alarm / without stop",
        "Samples x",
    ]
    return table(head, rows)


def _doses(report: Mapping[str, Any]) -> str:
    factors = list(next(iter(report["modes"].values()))["by_dose"])
    rows = []
    for key, mode in report["modes"].items():
        cells = [mode["by_dose"][f] for f in factors]
        rows.append(
            [f"{key} {mode['name']}"]
            + [f"{_share(c['detected'])} / {_number(c['delay_mean'], 1)}" for c in cells]
        )
    return table(["Mode", *(f"x {f}" for f in factors)], rows)


def _rules(report: Mapping[str, Any], label: str) -> str:
    rows = []
    for name, row in report["comparison"].items():
        alarms = row[f"{label}_false_alarms"]
        rows.append(
            [
                name,
                _number(
                    row[
                        {"tuned": "bound", "tuned_still": "bound_still", "habitual": "habitual_bound"}[label]
                    ],
                    3,
                ),
                _share(alarms["pooled"]),
                *(_share(alarms[key]) for key in report["false_alarms"]),
                _share(row[label]["detected"]),
                _number(row[label]["delay_mean"]),
            ]
        )
    head = ["Rule", "Bound", "Pooled", *report["false_alarms"], "Detected, 13 modes", "Mean delay"]
    return table(head, rows)


def _by_mode(report: Mapping[str, Any]) -> str:
    keys = list(next(iter(report["comparison"].values()))["tuned"]["modes"])
    rows = []
    for name, row in report["comparison"].items():
        cells = [row["tuned"]["modes"][key] for key in keys]
        rows.append([name, *(_number(c["delay_mean"], 1) for c in cells)])
    return table(["Rule", *keys], rows)


def _ablations(report: Mapping[str, Any]) -> str:
    rows = []
    for name, row in report["ablations"].items():
        modes = row["modes"]
        late = [f"{k} {_number(v['delay_mean'], 1)}" for k, v in modes.items() if (v["delay_mean"] or 0) > 1]
        missed = [f"{k} {_share(v['detected'])}" for k, v in modes.items() if v["detected"] < 0.95]
        alarms = ", ".join(f"{k} {_share(v['rate'])}" for k, v in row["controls"].items())
        rows.append(
            [
                name,
                alarms,
                _share(row["detected"]),
                _number(row["delay_mean"]),
                ", ".join(late),
                ", ".join(missed),
            ]
        )
    head = [
        "Rule",
        "False alarms",
        "Detected",
        "Mean delay",
        "Mean delay over 1 round",
        "Detected below 95 %",
    ]
    return table(head, rows)


def _left_out(report: Mapping[str, Any]) -> str:
    rows = []
    for name, modes in report["left_out"].items():
        said = [
            f"{key}: detected {_share(v['detected'][0])} -> {_share(v['detected'][1])}, "
            f"delay {_number(v['delay_mean'][0], 1)} -> {_number(v['delay_mean'][1], 1)}"
            for key, v in modes.items()
        ]
        rows.append([name, "; ".join(said) or "nothing"])
    return table(["Left out", "Changes"], rows)


def plots(report: Mapping[str, Any], folder: Path) -> None:
    """Dose-response, delay curves and the comparison, as PNG and SVG."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "tier_a"
    from matplotlib import pyplot

    for name, draw in (("dose_response", _draw_doses), ("delay", _draw_delay), ("comparison", _draw_rules)):
        figure = draw(pyplot, report)
        for ending in ("png", "svg"):
            metadata = {"Date": None} if ending == "svg" else {}
            figure.savefig(
                folder / f"tier_a_{name}.{ending}", dpi=150, bbox_inches="tight", metadata=metadata
            )
        pyplot.close(figure)


def _panels(pyplot: Any, count: int) -> tuple[Any, list[Any]]:
    columns = 5
    rows = -(-count // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(13, 2.5 * rows), sharex=True, sharey=True)
    flat = list(axes.flat)
    for axis in flat[count:]:
        axis.set_visible(False)
    for axis in flat[:count]:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, flat[:count]


def _draw_doses(pyplot: Any, report: Mapping[str, Any]) -> Any:
    figure, axes = _panels(pyplot, len(report["modes"]))
    for axis, (key, mode) in zip(axes, report["modes"].items(), strict=True):
        factors = [float(f) for f in mode["by_dose"]]
        for label, colour, pick in (
            ("this rule", HIGHLIGHT, lambda x: x),
            ("tuned to 5 % false alarms", GREY, lambda x: x["tuned"]),
        ):
            shares = [pick(x)["detected"] for x in mode["by_dose"].values()]
            axis.plot(factors, shares, "o-", color=colour, label=label, markersize=4)
        axis.set_xscale("log", base=2)
        axis.set_ylim(-0.03, 1.03)
        axis.set_title(f"{key} {mode['name']}", fontsize=9)
    axes[0].legend(fontsize=7, frameon=False)
    figure.supxlabel("dose / declared dose")
    figure.supylabel("runs detected")
    figure.tight_layout()
    return figure


def _draw_delay(pyplot: Any, report: Mapping[str, Any]) -> Any:
    figure, axes = _panels(pyplot, len(report["modes"]))
    for axis, (key, mode) in zip(axes, report["modes"].items(), strict=True):
        curve = mode["by_dose"]["1.0"]["by_round_after_onset"]
        axis.step(range(len(curve)), curve, where="post", color=HIGHLIGHT)
        axis.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
        axis.set_ylim(-0.03, 1.03)
        axis.set_title(f"{key} {mode['name']}", fontsize=9)
    figure.supxlabel("rounds after true onset")
    figure.supylabel("runs detected")
    figure.tight_layout()
    return figure


def _draw_rules(pyplot: Any, report: Mapping[str, Any]) -> Any:
    figure, axis = pyplot.subplots(figsize=(7, 5))
    for number, (name, row) in enumerate(report["comparison"].items()):
        points = sorted(row["curve"])
        ours = name == OURS
        axis.plot(
            [max(p[0], 1e-4) for p in points],
            [p[1] for p in points],
            "o-",
            markersize=3,
            linewidth=2.2 if ours else 1.0,
            color=HIGHLIGHT if ours else OTHERS[number - 1],
            label=name,
        )
    axis.axvline(0.05, color=GREY, linewidth=0.8, linestyle=":")
    axis.set_xscale("log")
    axis.set_xlabel("false alarms per run, pooled healthy controls (none: drawn at .0001)")
    axis.set_ylabel("runs of 13 modes caught within a round of onset")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
