"""The report of a run: one page that needs nothing else, written to ``rounds/RUN/report.html``."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ssd_loop import durable
from ssd_loop.figures import signal_lines
from ssd_loop.report import account, browser, grids, sections, status
from ssd_loop.report.account import Account
from ssd_loop.report.trends import trends

REPORT = "report.html"


def write(found: Account) -> Path:
    """Write the report of a run, of which anything may be missing; returns where it is."""
    page = render("report.html.j2", **context(found))
    path = found.shelf.place.folder / REPORT
    durable.write_bytes(path, page.encode("utf-8", "replace"))
    return path


def summary(found: Account) -> list[str]:
    """The report in some lines: the verdict, the key facts, and what is missing."""
    facts = [f"{name}: {value}" for name, value in key_facts(found)]
    return [account.verdict(found), *facts, *(f"missing: {line}" for line in found.shelf.missing)]


def render(template: str, **values: Any) -> str:
    """A page from its template; whatever a run's files say is escaped."""
    environment = Environment(
        loader=PackageLoader("ssd_loop.report", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Both are ours and hold nothing that a run said. The script's hash lets the page forbid all others.
    style, script = (Markup(_asset(name)) for name in ("style.css", "browser.js"))
    sha256 = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(template)
    return page.render(style=style, script=script, script_sha256=sha256, **values)


def _asset(name: str) -> str:
    return files("ssd_loop.report").joinpath("pages", name).read_text(encoding="utf-8")


def context(found: Account) -> dict[str, Any]:
    """Everything that the page shows, section by section."""
    shown = browser.gather(found.shelf)  # notes what it lacks: before the missing lines are shown
    return {
        "run": found.run,
        "verdict": account.verdict(found),
        "facts": key_facts(found),
        "missing": found.shelf.missing,
        "quality": grids.quality(found.reports),
        "decided": grids.decided(found.decisions),
        "groups": sections.drawn_trends(trends(found.decisions)),
        "gains": sections.gains(found),
        "baselines": sections.baselines(found),
        "cost": sections.cost(found),
        "places": sections.places(found),
        "samples": shown,
        "settings": sections.settings(found),
    }


def key_facts(found: Account) -> list[tuple[str, str]]:
    """What a reader has to know of a run before its numbers."""
    about = found.shelf.about
    facts = [
        (
            "model",
            ", ".join([found.model, *_stated(about.get("base_model", {}).get("dtype"), about.get("engine"))]),
        ),
        ("rounds", _rounds(found)),
        ("best round", _best(found)),
        ("how it ended", account.ending(found)),
    ]
    if found.config:
        facts += [_choice(line) for line in status.choices(about, found.config)]
    if told := found.reports.get(0, {}).get("signal"):
        facts.append(("before training", signal_lines(told)[0]))
    if seconds := found.ledger["total"]["seconds"]:
        facts.append(("time", f"{seconds / 3600:.2f} hours in its stages"))
    return facts


def _choice(line: str) -> tuple[str, str]:
    """A line of the run's choices under what it is about."""
    budget = line.removeprefix("monitors: ")
    return ("loop", line) if budget == line else ("monitors", budget)


def _stated(*values: str | None) -> list[str]:
    return [value for value in values if value]


def _rounds(found: Account) -> str:
    measured = [n for n in found.reports if n]
    told = f"{status.spans(measured)} measured" if measured else "none measured"
    return f"{told}; round 0 is the untouched model"


def _best(found: Account) -> str:
    if found.best is None:
        return "not decided yet"
    name = f"round {found.best}" if found.best else "round 0, the base"
    return f"{name} ({status.BEST_MEANS.removeprefix('best: ')})"
