"""The report's pictures: SVG in the page's own colours and letters, with a text for those who listen.

Colours are stand-ins while matplotlib draws and become CSS variables after that, so that a page can turn
dark.
The same data gives the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ssd_loop.report.trends import Trend

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# Stand-ins that no picture uses otherwise, by the CSS variable that takes their place.
INK, SOFT, FAINT, LINE_1, LINE_2, TOLERATED, NOISE, ALARM = (f"#00000{n}" for n in range(1, 9))
VARIABLES = {
    INK: "--ink",
    SOFT: "--soft",
    FAINT: "--faint",
    LINE_1: "--line-1",
    LINE_2: "--line-2",
    TOLERATED: "--tolerated",
    NOISE: "--noise",
    ALARM: "--alarm",
}
LOOKS: Sequence[tuple[str, Any, str]] = ((LINE_1, "-", "o"), (LINE_2, (0, (4, 2)), "s"))
SMALL, WIDE = (3.2, 2.0), 3.9  # inches, 72 units of the drawing each
IN_LEGEND, BESIDE_ROW = 14, 44  # letters of a label
STYLE: Any = {
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.fonttype": "none",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.0,
    "axes.formatter.useoffset": False,
    "path.simplify": False,
}


@dataclass(frozen=True)
class Curve:
    """A named line; `errors` are standard errors, None where there is no value or no error."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    errors: Sequence[float | None] = ()


@dataclass(frozen=True)
class Interval:
    """One row of a forest plot: an estimate and the ends of its interval, in the plot's unit."""

    label: str
    mean: float
    low: float | None
    high: float | None
    is_part: bool = False  # of the row above it


@dataclass
class _Canvas:
    """A picture being drawn."""

    axes: Axes
    svg: Markup = field(default_factory=Markup)


def trend(found: Trend, *, name: str) -> Markup:
    """One monitor over the rounds: value, baseline, tolerated band, where an alarm begins, alarms."""
    rounds = [point.round for point in found.points]
    said = [f"round {p.round}: {_number(p.value)}{', alarm' if p.alarm else ''}" for p in found.points]
    base = _number(next((p.baseline for p in found.points if p.baseline is not None), None))
    with _picture(name, SMALL, f"{found.name} by round; round 0: {base}; {'; '.join(said)}") as canvas:
        axes = canvas.axes
        baseline = _gapped([p.baseline for p in found.points])
        tolerated, alarm_at, alarm_below = (
            _gapped([getattr(p, of) for p in found.points]) for of in ("tolerated", "alarm_at", "alarm_below")
        )
        spans = _widened(rounds)
        for limit in (tolerated, alarm_below):
            axes.fill_between(*_steps(spans, baseline, limit), color=TOLERATED, linewidth=0)
        axes.fill_between(*_steps(spans, tolerated, alarm_at), color=NOISE, linewidth=0)
        for limit in (alarm_at, alarm_below):
            x, edge, _ = _steps(spans, limit, limit)
            axes.plot(x, edge, color=ALARM, linewidth=0.9, linestyle=(0, (3, 2)))
        x, edge, _ = _steps(spans, baseline, baseline)
        axes.plot(x, edge, color=SOFT, linewidth=1.0)
        axes.plot(rounds, _gapped([p.value for p in found.points]), color=LINE_1, marker="o")
        fired = [p for p in found.points if p.alarm and p.value is not None]
        axes.plot(
            [p.round for p in fired],
            _gapped([p.value for p in fired]),
            linestyle="none",
            marker="X",
            markersize=8,
            color=ALARM,
        )
        _by_round(axes, rounds)
        if not any(p.value or p.alarm_at for p in found.points):
            axes.set_ylim(-0.1, 1.0)  # a count that stays at zero
    return canvas.svg


def curves(
    lines: Sequence[Curve],
    *,
    name: str,
    title: str,
    x_label: str,
    x_span: Sequence[float] = (),
    y_span: Sequence[float] = (),
) -> Markup:
    """One or two lines over the same x, the second broken, with a legend.

    Args:
        lines: What is drawn.
        name: Tells the picture from all others of a page.
        title: What it shows, for those who listen.
        x_label: Below the axis; "round" has whole numbers.
        x_span: Values that the axis covers besides those drawn.
        y_span: The same upwards.
    """
    parts = [
        f"{line.label}: " + ", ".join(f"{x:g} {_number(y)}" for x, y in zip(line.x, line.y, strict=True))
        for line in lines
    ]
    with _picture(name, SMALL, f"{title}; {'; '.join(parts)}") as canvas:
        axes = canvas.axes
        for line, (colour, dashes, marker) in zip(lines, LOOKS, strict=False):
            axes.errorbar(
                line.x,
                _gapped(line.y),
                yerr=_gapped(line.errors) if line.errors else None,
                color=colour,
                linestyle=dashes,
                marker=marker,
                elinewidth=0.9,
                capsize=2,
                label=_short(line.label, IN_LEGEND),
            )
        axes.update_datalim([(x, axes.dataLim.y0) for x in x_span])
        axes.update_datalim([(axes.dataLim.x0, y) for y in y_span])
        axes.autoscale_view()
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 1.0))
        axes.set_xlabel(x_label)
        if x_label == "round":
            _by_round(axes, [int(x) for line in lines for x in line.x])
    return canvas.svg


def forest(rows: Sequence[Interval], *, name: str, title: str, x_label: str) -> Markup:
    """Estimates with their intervals, one below the other, and a line at zero."""
    said = "; ".join(f"{row.label} {_signed(row)}" for row in rows)
    with _picture(name, (WIDE, 0.55 + 0.24 * len(rows)), f"{title}: {said}") as canvas:
        axes = canvas.axes
        for place, row in enumerate(rows):
            colour = LINE_2 if row.is_part else LINE_1
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [place, place], color=colour, linewidth=1.4)
            axes.plot([row.mean], [place], marker="o" if not row.is_part else "s", color=colour)
        axes.axvline(0.0, color=SOFT, linewidth=0.9)
        axes.set_yticks(range(len(rows)), [_short(row.label, BESIDE_ROW) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_xlabel(x_label)
    return canvas.svg


@contextmanager
def _picture(name: str, size: tuple[float, float], said: str) -> Iterator[_Canvas]:
    """Axes to draw on; when the block ends the picture is in `svg`."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        canvas = _Canvas(figure.subplots())
        canvas.axes.patch.set_visible(False)
        canvas.axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        yield canvas
        written = io.BytesIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    canvas.svg = _for_a_page(written.getvalue(), name, said)


def _for_a_page(drawn: bytes, name: str, said: str) -> Markup:
    """The drawing as an element of a page: no size of its own, no metadata, ids and colours that fit in."""
    root = ElementTree.fromstring(drawn)
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", _printable(said))
    for element in root.iter():
        if "id" in element.attrib:
            element.set("id", f"{name}-{element.get('id')}")
        for attribute, value in element.attrib.items():
            if attribute == f"{{{XLINK}}}href":
                element.set(attribute, value.replace("#", f"#{name}-", 1))
            elif attribute in ("style", "clip-path"):
                element.set(attribute, _styled(value, name))
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _styled(style: str, name: str) -> str:
    """Colours become the page's, the font is the page's own, and references follow the new ids."""
    style = re.sub(r"#00000[1-8]", lambda found: f"var({VARIABLES[found[0]]})", style)
    style = re.sub(r"font: ([\d.]+)px [^;]*", r"font-size: \1px", style)
    style = re.sub(r"font-family: [^;]*;?", "", style)
    return style.replace("url(#", f"url(#{name}-")


def _gapped(values: Sequence[float | None]) -> list[float]:
    """A missing value is a gap."""
    return [math.nan if value is None else value for value in values]


def _widened(rounds: Sequence[int]) -> list[tuple[float, float]]:
    """Half a round to either side: what a round's own band covers."""
    return [(n - 0.5, n + 0.5) for n in rounds]


def _steps(
    spans: Sequence[tuple[float, float]], low: Sequence[float], high: Sequence[float]
) -> tuple[list[float], list[float], list[float]]:
    """Bands that hold for one round each: they differ, since each round has a noise of its own."""
    x = [end for span in spans for end in span]
    return x, [value for value in low for _ in range(2)], [value for value in high for _ in range(2)]


def _by_round(axes: Axes, rounds: Sequence[int]) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.set_xlim(min(rounds) - 0.5, max(rounds) + 0.5)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _short(label: str, most: int) -> str:
    """A label that fits and that XML can hold."""
    shown = _printable(label)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _signed(row: Interval) -> str:
    if row.low is None or row.high is None:
        return f"{row.mean:+.1f}"
    return f"{row.mean:+.1f}, from {row.low:+.1f} to {row.high:+.1f}"
