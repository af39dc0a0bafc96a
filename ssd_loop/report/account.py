"""What a run's files say, gathered once: what the report and the comparison of two runs are made of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_loop import costs, evaluation, finals, sweeping
from ssd_loop.config import RunConfig
from ssd_loop.config_file import load
from ssd_loop.costs import Spent
from ssd_loop.errors import ConfigError
from ssd_loop.figures import Difference, points
from ssd_loop.monitors.decision import Decision
from ssd_loop.place import BEST, CONTINUED, RUN_FILE
from ssd_loop.records import TextScore
from ssd_loop.report import facts
from ssd_loop.report.forks_and_locks import at_places
from ssd_loop.report.shelf import Shelf, open_shelf
from ssd_loop.verdicts import passed_stops

BAR = "best decoding"  # the base's arm that a gain is measured against


@dataclass(frozen=True)
class Account:
    """One run.

    Attributes:
        config: Its settings; None where run.json cannot be read.
        reports: Evaluation reports by round.
        decisions: What the monitors decided, in order.
        best: The best round; None where nothing was decided.
        shown: The round that is held against the base: the best one, else the last that was measured.
        gains: `gains.measure` of that round.
        final: Base and best round on the untouched panel (`facts.final_of`).
        sweeps: Base and best round over decoding settings, by round.
        places: Forks and locks of every later round (`forks_and_locks.at_places`).
        spent: What every round and stage cost.
        passed: Rounds whose stop was passed over on request.
        price_per_device_hour: In any currency; 0 is unknown.
    """

    shelf: Shelf
    config: RunConfig | None
    reports: dict[int, dict[str, Any]]
    decisions: list[Decision]
    best: int | None
    shown: int | None
    gains: dict[str, Any] | None
    final: dict[str, Any] | None
    sweeps: dict[int, dict[str, Any]]
    places: dict[int, dict[str, Any]]
    spent: Spent
    passed: list[int]
    price_per_device_hour: float

    @property
    def run(self) -> str:
        """Its name."""
        return self.shelf.place.run

    @property
    def model(self) -> str:
        """What its base is called."""
        title: str = self.shelf.about.get("base_model", {}).get("title", "an unknown model")
        return title

    @property
    def rounds(self) -> int:
        """The last round that was measured or decided on."""
        return max([*self.reports, *(decision.round for decision in self.decisions)], default=0)

    @property
    def bought(self) -> Difference | None:
        """The final figure: best round against base on the untouched panel, each at its best decoding."""
        found = self.final["compared"].get(BAR) if self.final else None
        return Difference(**found) if found else None

    @property
    def ledger(self) -> dict[str, Any]:
        """What it cost, and for each point that it gained on the untouched panel."""
        gain = 100 * self.bought.mean if self.bought else None
        return costs.ledger(self.spent, price_per_device_hour=self.price_per_device_hour, gain_points=gain)


def gather(root: Path, run: str, *, price_per_device_hour: float | None = None) -> Account:
    """Everything that is there of a run; what is damaged or missing is noted on its shelf.

    Args:
        root: Folder that holds ``rounds/`` and ``checkpoints/``.
        run: Its name.
        price_per_device_hour: In place of the one that the run was begun with.

    Raises:
        ConfigError: there is no such run.
    """
    shelf = open_shelf(root, run)
    place = shelf.place
    decisions, reports = shelf.decisions(), shelf.reports()
    best = _best(shelf, decisions)
    later = [n for n in reports if n]
    shown = best or (max(later) if later else None)
    gains = final = None
    sweeps: dict[int, dict[str, Any]] = {}
    if shown in reports and 0 in reports and shelf.has("evaluate", (0, shown), evaluation.RESULTS):
        with shelf.noting(place.stage(shown, "evaluate")):
            gains = facts.gains_of(place, shown)
    if best:
        swept = [n for n in (0, best) if shelf.file(n, "sweep", sweeping.SWEEP)]
        sweeps = {n: sweeping.read(place.stage(n, "sweep")) for n in swept}
        if shelf.has("final", (0, best), finals.FINAL):
            with shelf.noting(place.stage(best, "final")):
                final = facts.final_of(place, best)
    config = _config(shelf)
    if price_per_device_hour is None:
        price_per_device_hour = config.track.price_per_device_hour if config else 0.0
    return Account(
        shelf=shelf,
        config=config,
        reports=reports,
        decisions=decisions,
        best=best,
        shown=shown,
        gains=gains,
        final=final,
        sweeps=sweeps,
        places=_places(shelf),
        spent=_spent(shelf),
        passed=_passed(shelf),
        price_per_device_hour=price_per_device_hour,
    )


def _best(shelf: Shelf, decisions: Sequence[Decision]) -> int | None:
    """Where `best` points, else what the last decision says."""
    best = shelf.place.best
    if best is None and decisions:
        shelf.note(shelf.place.weights / BEST, "is missing; the best round is the last decision's")
        return decisions[-1].best_round
    return best


def _config(shelf: Shelf) -> RunConfig | None:
    if not shelf.about:
        return None
    try:
        return load(None, {}, shelf.about["config"])
    except ConfigError as error:
        shelf.note(shelf.place.folder / RUN_FILE, f"has settings that this version cannot read ({error})")
        return None


def _places(shelf: Shelf) -> dict[int, dict[str, Any]]:
    """Forks and locks of every round whose scores are there, against round 0's."""
    baseline = shelf.rows(0, "evaluate", evaluation.SCORES, TextScore)
    found: dict[int, dict[str, Any]] = {}
    for n in shelf.measured if baseline else ():
        path = shelf.file(n, "evaluate", evaluation.SCORES)
        if n and baseline and path:
            with shelf.noting(path):
                found[n] = at_places(baseline, shelf.rows(n, "evaluate", path.name, TextScore) or [])
    return found


def _spent(shelf: Shelf) -> Spent:
    path = shelf.place.folder / costs.COSTS
    if not path.exists():
        shelf.note(path, "is missing, so costs are not told")
        return {}
    spent: Spent = {}
    with shelf.noting(path):
        spent = costs.read(shelf.place.folder)
    return spent


def _passed(shelf: Shelf) -> list[int]:
    passed: list[int] = []
    with shelf.noting(shelf.place.folder / CONTINUED):
        passed = passed_stops(shelf.place)
    return passed


def verdict(account: Account) -> str:
    """The whole run in one sentence."""
    parts = [_gain(account)]
    if account.gains:
        where = (
            "where every round is measured" if account.final else f"round {account.shown} against the base"
        )
        parts.append(f"{where}: {account.gains['verdict']}")
    parts.append(ending(account))
    return f"{'; '.join(parts)}."


def _gain(account: Account) -> str:
    final, bought = account.final, account.bought
    if final and bought:
        kind = {1: "a gain", -1: "a loss", 0: "no gain beyond noise"}[bought.direction]
        return (
            f"On {bought.problems} problems that nothing was tuned on ({final['panel']}), round "
            f"{final['round']} of {account.model} solves {100 * bought.after:.1f} % at its best "
            f"decoding and the base {100 * bought.before:.1f} % at its own: {points(bought)} points, {kind}"
        )
    if account.best == 0:
        return f"No round of {account.model} beat the base on the held-out problems"
    if account.best is None:
        return f"Nothing was decided about {account.model} yet"
    return (
        f"Round {account.best} of {account.model} beat the base on the held-out problems, and nothing was "
        "measured on untouched ones"
    )


def ending(account: Account) -> str:
    """How the run ended, and why, as far as its files tell."""
    if not account.decisions:
        return "no round was decided on"
    last = account.decisions[-1]
    if last.verdict != "stop":
        return f"no monitor had stopped it by round {last.round}, its last"
    why = f"{last.kind}: {brief(last.reason)}"
    if last.round in account.passed:
        return f"the monitors said stop at round {last.round} ({why}) and were passed over on request"
    if account.config and account.config.monitor.action == "warn":
        return f"the monitors, which only watched, said stop at round {last.round} ({why})"
    return f"the monitors stopped it after round {last.round} ({why})"


def brief(reason: str) -> str:
    """A decision's reason without its numbers."""
    return re.split(r" \(|;", reason)[0]
