"""Which monitors decide: their names, families, panels and statistics, in one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from ssd_loop.config import MonitorName, PanelName
from ssd_loop.monitors import (
    agreement,
    audit,
    breadth,
    forks,
    judgement,
    passes,
    recycling,
    richness,
    surprise,
)
from ssd_loop.monitors.contrast import Contrast, Family, Form, Values, contrast
from ssd_loop.monitors.draws import Draws
from ssd_loop.monitors.positions import Positions


@dataclass(frozen=True)
class Monitor:
    """A quantity measured on samples of a panel; the null replay draws its noise from round 0's samples.

    Attributes:
        panel: Panel it is measured on; "probe" falls back to "heldout" where no probe panel is drawn.
        measure: Per problem, from some samples.
        baseline: Per problem, from round 0's samples and the size of one of its sets, where that differs.
        worse: +1 if a rise is worse, -1 if a fall is.
    """

    name: MonitorName
    family: Family
    panel: PanelName
    measure: Callable[[Draws], Values]
    form: Form
    worse: Literal[1, -1]
    baseline: Callable[[Draws, int], Values] | None = None

    def at_baseline(self, draws: Draws, set_size: int) -> Values:
        """The quantity at round 0, whose samples hold several sets of `set_size`."""
        return self.baseline(draws, set_size) if self.baseline else self.measure(draws)

    def contrast(self, current: Values, baseline: Values) -> Contrast:
        """The worsening between two measurements."""
        return contrast(current, baseline, self.form, self.worse)


def sampled(coverage_k: int, richness_m: int) -> tuple[Monitor, ...]:
    """The monitors that are measured on samples.

    Args:
        coverage_k: k of the coverage monitor pass@k; 1 leaves it out.
        richness_m: m of distinct@m.
    """
    pass_at_1 = partial(passes.measure, k=1)
    monitors = [
        Monitor("heldout_pass_at_1", "harm", "heldout", pass_at_1, "paired", -1),
        Monitor("heldout_coverage", "harm", "heldout", partial(passes.measure, k=coverage_k), "paired", -1),
        Monitor(
            "hard_tier_pass_at_1",
            "harm",
            "heldout",
            pass_at_1,
            "paired",
            -1,
            baseline=breadth.measure_baseline,
        ),
        Monitor("gate_precision", "harm", "heldout", audit.precision, "ratio", -1),
        Monitor("ood_pass_at_1", "harm", "ood", pass_at_1, "paired", -1),
        Monitor("richness", "collapse", "probe", partial(richness.measure, m=richness_m), "relative", -1),
        Monitor("wrong_agreement", "collapse", "probe", agreement.wrong_alike, "paired", 1),
    ]
    return tuple(m for m in monitors if m.name != "heldout_coverage" or coverage_k > 1)


# Family of the monitors that the null replay cannot redraw: scoring is deterministic, an archive is fixed.
SCORED: dict[MonitorName, Family] = {
    "reference_nll": "harm",
    "twin_gap": "harm",
    "fork_loss": "collapse",
    "lock_leakage": "collapse",
    "dead_share": "collapse",
    "recycling": "collapse",
    "self_judgement": "collapse",
}
# Those of them that are measured on samples, which are new ones in every round; texts stay the same.
NEW_SAMPLES: frozenset[MonitorName] = frozenset({"twin_gap", "recycling", "self_judgement"})
# Below these sizes recycling and self-judgement are reported, not decided on: they move too much by chance.
LARGE_PROBLEMS, LARGE_SAMPLES = 100, 8


def on_texts(baseline: Positions, current: Positions) -> dict[MonitorName, Contrast]:
    """The monitors that are read off the reference texts; the text is the unit."""
    open_places, sure_places = forks.labels(baseline, current)
    entropy_now, entropy_before = (forks.entropy_at(p, open_places) for p in (current, baseline))
    leakage_now, leakage_before = (forks.leakage_at(p, sure_places) for p in (current, baseline))
    return {
        "reference_nll": contrast(surprise.measure(current), surprise.measure(baseline), "paired", 1),
        "fork_loss": contrast(entropy_now, entropy_before, "relative", -1),
        "lock_leakage": contrast(leakage_now, leakage_before, "paired", 1),
        "dead_share": contrast(forks.dead(current), forks.dead(baseline), "paired", 1),
    }


def on_rounds(baseline: Draws, current: Draws, archive: Draws | None) -> dict[MonitorName, Contrast]:
    """The monitors that are decided on only where many samples of many problems were drawn.

    Args:
        baseline: Round 0's samples of the probe panel.
        current: This round's.
        archive: Samples of the rounds between, as many per problem as fit into round 0's less one set;
            None in the first round.
    """
    found: dict[MonitorName, Contrast] = {
        "self_judgement": contrast(judgement.measure(current), judgement.measure(baseline), "ratio", -1)
    }
    if archive is not None:
        archived = recycling.comparable(baseline, archive)
        expected = recycling.expected_novelty(baseline, archived)
        found["recycling"] = contrast(recycling.novelty(current, archive, archived), expected, "paired", -1)
    return found


def is_large(draws: Draws) -> bool:
    """Whether there are samples enough to decide on `on_rounds`."""
    return draws.problems >= LARGE_PROBLEMS and draws.samples >= LARGE_SAMPLES


def twin_gap(current: tuple[Values, Values], baseline: tuple[Values, Values]) -> Contrast:
    """How much more the original panel gained than its renamed twins; each pair is (original, twin).

    A model that learned the panel's texts by heart gains on them alone (collapse literature, section 4.5).
    """
    gaps = [_gap(*pair) for pair in (current, baseline)]
    return contrast(gaps[0], gaps[1], "paired", 1)


def _gap(original: Values, twin: Values) -> Values:
    both = (original.den > 0.0) & (twin.den > 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.where(both, original.num / original.den - twin.num / twin.den, 0.0)
    return Values(gap, both.astype(float))
