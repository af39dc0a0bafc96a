"""Hard guards: what stops a run without statistics, because chance is out of the question."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ssd_loop.config import MonitorConfig
from ssd_loop.monitors import degeneracy
from ssd_loop.monitors.contrast import Floats
from ssd_loop.monitors.decision import Reading
from ssd_loop.monitors.evidence import Evidence
from ssd_loop.records import Trait

MERGE_RESIDUAL = 0.01  # nats per token that writing the weights may change (collapse literature, M13)


def readings(evidence: Evidence, config: MonitorConfig) -> dict[str, Reading]:
    """Every guard that applies: NaN or Inf, degenerate answers, length, merge residual, leaks."""
    before, now = evidence.traits
    shares: dict[str, Callable[[Trait], bool]] = {
        "truncated_share": lambda trait: trait.cut,
        "loops_share": lambda trait: trait.loops,
    }
    if evidence.panels["heldout"].is_code:
        shares["unparsable_share"] = lambda trait: trait.shape is None
    found = {name: _share(before, now, is_bad, config.degenerate_floor) for name, is_bad in shares.items()}
    found["length"] = _length(before, now)
    found["not_finite"] = _not_finite(evidence)
    if "gate_residual" in evidence.merge:
        residual = float(evidence.merge["gate_residual"])
        alarm = not abs(residual) <= MERGE_RESIDUAL
        found["merge_residual"] = Reading("guard", residual, 0.0, MERGE_RESIDUAL, alarm=alarm)
    for name, hits in evidence.leaks.items():
        why = f"{len(hits)} found, such as {hits[0]}" if hits else None
        found[name] = Reading("guard", float(len(hits)), 0.0, 0.0, alarm=bool(hits), reason=why)
    return found


def _share(
    before: Sequence[Trait], now: Sequence[Trait], is_bad: Callable[[Trait], bool], floor: float
) -> Reading:
    bad_before, bad_now = (np.float64(sum(map(is_bad, traits))) for traits in (before, now))
    of_before, of_now = np.float64(len(before)), np.float64(len(now))
    bound = np.float64(degeneracy.limit(bad_before, of_before, floor))
    alarm = bool(degeneracy.surely_above(bad_now, of_now, bound))
    return Reading("guard", float(bad_now / of_now), float(bad_before / of_before), float(bound), alarm=alarm)


def _length(before: Sequence[Trait], now: Sequence[Trait]) -> Reading:
    old, new = _log_lengths(before), _log_lengths(now)
    mean, se = degeneracy.length_change(old, new)
    level, base = (float(np.exp(lengths.mean())) for lengths in (new, old))
    return Reading(
        "guard", level, base, degeneracy.LENGTH_FACTOR, se=float(se), alarm=bool(degeneracy.runaway(mean, se))
    )


def _log_lengths(traits: Sequence[Trait]) -> Floats:
    """Mean log length of each problem's answers, in the order of their ids."""
    lengths: dict[str, list[float]] = {}
    for trait in traits:
        lengths.setdefault(trait.problem_id, []).append(math.log(max(trait.tokens, 1)))
    return np.array([np.mean(lengths[name]) for name in sorted(lengths)])


def _not_finite(evidence: Evidence) -> Reading:
    """Log-probs of answers or of reference texts that are NaN or infinite."""
    answers = [trait.logprob for trait in evidence.traits[1]]
    texts = [value for score in evidence.scores.current for value in score.logprobs]
    count = sum(not math.isfinite(value) for value in (*answers, *texts))
    why = f"{count} log-probs are NaN or infinite" if count else None
    return Reading("guard", float(count), 0.0, 0.0, alarm=count > 0, reason=why)
