"""Where a gain is: paired differences by panel, tier and outcome, with intervals, and problems by name.

A higher number after training is not a result. The same problems are measured before and after, so every
figure is a mean of differences per problem with Student's interval over problems; problems without both
measurements are left out.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, get_args

import numpy as np

from ssd_loop.figures import Difference, points
from ssd_loop.monitors.passes import pass_at_k
from ssd_loop.records import Outcome, Result

CONFIDENCE = 0.95
# Change of a problem's pass rate that makes it one that was gained or lost (ours).
NAMED_CHANGE = 0.5

Counts = Mapping[str, tuple[int, int]]  # by problem: answers that passed, answers drawn


def paired(before: Mapping[str, float], after: Mapping[str, float]) -> Difference | None:
    """Difference over the problems that both hold, with Student's paired interval; None where there are none.

    Where all problems changed by the same amount there is no spread to judge by, and no interval; where none
    changed, it is zero.
    """
    names = [name for name in before if name in after]
    if not names:
        return None
    then, now = (np.array([rates[name] for name in names]) for rates in (before, after))
    change = now - then
    low = high = None
    if len(names) > 1:
        if change.std() > 0.0:
            # Imported here: SciPy takes a while, and `status` is asked often.
            from scipy.special import stdtrit

            se = float(change.std(ddof=1)) / math.sqrt(len(names))
            reach = float(stdtrit(len(names) - 1, (1.0 + CONFIDENCE) / 2.0)) * se
            low, high = float(change.mean()) - reach, float(change.mean()) + reach
        elif change.mean() == 0.0:
            low = high = 0.0
    return Difference(len(names), float(then.mean()), float(now.mean()), float(change.mean()), low, high)


def counts(rows: Iterable[Result]) -> dict[str, tuple[int, int]]:
    """How many answers to each problem passed, of how many."""
    right: Counter[str] = Counter()
    drawn: Counter[str] = Counter()
    for row in rows:
        drawn[row.problem_id] += 1
        right[row.problem_id] += row.outcome == "passed"
    return {name: (right[name], drawn[name]) for name in drawn}


def rates(of: Counts, k: int = 1) -> dict[str, float]:
    """pass@k of every problem with at least k answers (Chen et al. 2021, arXiv 2107.03374, equation 1)."""
    return {name: pass_at_k(drawn, right, k) for name, (right, drawn) in of.items() if drawn >= k}


def measure(
    before: Sequence[Result], after: Sequence[Result], tiers: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """Every panel's gain as plain data, and the verdict in one sentence.

    Args:
        before: Judged answers of one model.
        after: Of the other one, to the same problems.
        tiers: By panel, the tier of every problem; panels may be missing.

    Returns:
        ``{"panels": {panel: {"pass_at": {k: Difference}, "tiers": {tier: {k: Difference}}, "outcomes":
        {outcome: Difference}, "gained": [...], "lost": [...]}}, "verdict": str}``; panels whose answers were
        not run are left out.
    """
    then, now = _by_panel(before), _by_panel(after)
    panels = {}
    for name in then:
        ran = all(row.outcome != "not_run" for row in (*then[name], *now.get(name, ())))
        if name in now and ran:
            panels[name] = _panel(then[name], now[name], tiers.get(name, {}))
    return {"panels": panels, "verdict": verdict(_firsts(panels))}


def _by_panel(rows: Sequence[Result]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = defaultdict(list)
    for row in rows:
        found[row.panel].append(row)
    return dict(found)


def _panel(before: Sequence[Result], after: Sequence[Result], tier_of: Mapping[str, str]) -> dict[str, Any]:
    then, now = counts(before), counts(after)
    groups: dict[str, set[str]] = defaultdict(set)
    for problem, tier in tier_of.items():
        groups[tier].add(problem)
    tiers = {tier: _pass_at(_only(then, ids), _only(now, ids)) for tier, ids in sorted(groups.items())}
    gained, lost = named_changes(then, now)
    return {
        "pass_at": _pass_at(then, now),
        "tiers": {tier: found for tier, found in tiers.items() if found} if len(tiers) > 1 else {},
        "outcomes": _outcomes(before, after),
        "gained": gained,
        "lost": lost,
    }


def _only(of: Counts, names: set[str]) -> dict[str, tuple[int, int]]:
    return {name: pair for name, pair in of.items() if name in names}


def _pass_at(before: Counts, after: Counts) -> dict[str, Any]:
    """pass@1, and pass@k with the largest k that every problem has answers for in both."""
    drawn = [
        pair[1] for of in (before, after) for name, pair in of.items() if name in before and name in after
    ]
    found = {}
    for k in sorted({1, min(drawn, default=1)}):
        if (difference := paired(rates(before, k), rates(after, k))) is not None:
            found[str(k)] = asdict(difference)
    return found


def _outcomes(before: Sequence[Result], after: Sequence[Result]) -> dict[str, Any]:
    """How often answers end in each way, before and after: not only that they fail, but how."""
    shares = [_shares(rows) for rows in (before, after)]
    found = {}
    for outcome in get_args(Outcome):
        ends = [{name: by.get(outcome, 0.0) for name, by in share.items()} for share in shares]
        if any(value for rate in ends for value in rate.values()):
            difference = paired(*ends)
            found[outcome] = asdict(difference) if difference else None
    return found


def _shares(rows: Sequence[Result]) -> dict[str, dict[str, float]]:
    by_problem: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        by_problem[row.problem_id][row.outcome] += 1
    return {
        name: {outcome: n / ended.total() for outcome, n in ended.items()}
        for name, ended in by_problem.items()
    }


def named_changes(before: Counts, after: Counts) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Problems whose pass rate rose, and fell, by at least half, the largest change first."""
    changes = sorted(
        (after[name][0] / after[name][1] - before[name][0] / before[name][1], name)
        for name in before
        if name in after
    )
    named = [
        (change, {"problem": name, "before": list(before[name]), "after": list(after[name])})
        for change, name in changes
    ]
    gained = [row for change, row in reversed(named) if change >= NAMED_CHANGE]
    return gained, [row for change, row in named if change <= -NAMED_CHANGE]


def _firsts(panels: Mapping[str, Mapping[str, Any]]) -> dict[str, Difference]:
    return {name: Difference(**panel["pass_at"]["1"]) for name, panel in panels.items() if panel["pass_at"]}


def verdict(found: Mapping[str, Difference]) -> str:
    """One sentence on pass@1: which panels' 95 % intervals leave zero, and where nothing else moved."""
    if not found:
        return "no panel was measured before and after"
    up = [name for name, difference in found.items() if difference.direction > 0]
    down = [name for name, difference in found.items() if difference.direction < 0]
    losses = f"; loss on {_listed(down)}" if down else ""
    if not up:
        return (f"loss on {_listed(down)}" if down else "no panel's interval leaves zero") + _sizes(
            found, down
        )
    if len(up) == 1 and len(found) > 1:
        confined = f"gain confined to {up[0]}" if not down else f"gain on {up[0]} alone"
        return confined + losses + _sizes(found, up + down)
    return f"gain on {_listed(up)}{losses}{_sizes(found, up + down)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]


def _sizes(found: Mapping[str, Difference], names: Sequence[str]) -> str:
    parts = [f"{name} {points(found[name])}" for name in names or found]
    return f" ({'; '.join(parts)} points of pass@1)"
