"""What is shown for the reader and never decided on: too coupled with length, gain or boilerplate."""

from __future__ import annotations

from collections.abc import Callable

from ssd_loop.monitors import agreement, audit, breadth, contrast, forks, positions, richness, surface
from ssd_loop.monitors.contrast import Values
from ssd_loop.monitors.decision import Reading
from ssd_loop.monitors.draws import Draws
from ssd_loop.monitors.evidence import Evidence


def readings(evidence: Evidence, richness_m: int) -> dict[str, Reading]:
    """Every reported quantity; null with the reason where it cannot be told."""
    heldout, probe = evidence.panels["heldout"], evidence.probe
    scores = evidence.scores
    before, now = scores.positions()
    found = {
        "tail_mass": _mean(forks.tail_mass(now), forks.tail_mass(before)),
        "kl_to_base": _value(positions.coarse_kl(scores.current, scores.baseline), "nats"),
        "kl_to_previous": _value(positions.coarse_kl(scores.current, scores.previous), "nats"),
        "self_bleu": _value(surface.self_bleu(evidence.texts), "no problem has 4 answers"),
        "compression_ratio": _value(
            surface.compression_ratio([text for group in evidence.texts for text in group]),
            "fewer than 64 KiB of answers",
        ),
        "richness_of_all": _paired(
            probe.pooled, probe.baseline, lambda draws: richness.measure(draws, richness_m, right_only=False)
        ),
        "agreement_of_wrong": _paired(probe.pooled, probe.baseline, agreement.among_wrong),
        "effective_rank": _value(evidence.merge.get("update_effective_rank"), "nothing was merged"),
        "update_norm_share": _value(evidence.merge.get("delta_norm_share"), "nothing was merged"),
    }
    if heldout.judged:
        found["gate_acceptance"] = _paired(heldout.pooled, heldout.baseline, audit.acceptance)
        found["participation_ratio"] = _value(
            breadth.participation_ratio(heldout.baseline, heldout.pooled),
            "noise explains all differences between problems",
        )
        found["lost_coverage"] = _value(
            breadth.lost_coverage(heldout.baseline, heldout.pooled), "no problem was solved twice at round 0"
        )
    return found


def _value(value: float | None, reason: str) -> Reading:
    return Reading("report", value, None, None, reason=reason if value is None else None)


def _paired(current: Draws, baseline: Draws, measure: Callable[[Draws], Values]) -> Reading:
    return _mean(measure(current), measure(baseline))


def _mean(current: Values, baseline: Values) -> Reading:
    found = contrast.contrast(current, baseline, "paired", 1)
    if int(found.units) == 0:
        return Reading("report", None, None, None, reason="no problem tells it in both rounds")
    se = float(found.se) if int(found.units) > 1 else None
    return Reading("report", float(found.value), float(found.baseline), None, se=se)
