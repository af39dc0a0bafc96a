"""What a round's decision is made from, read from the files of finished stages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ssd_loop import evaluation, filtering
from ssd_loop.config import FilterConfig, PanelName
from ssd_loop.errors import BadArtifactError
from ssd_loop.monitors import draws, positions
from ssd_loop.monitors.draws import Draws
from ssd_loop.monitors.positions import Positions
from ssd_loop.records import Result, Sample, TextScore, Trait, read_rows
from ssd_loop.sampling import SAMPLES

DID_NOT_RUN = ("crashed", "timeout", "no_code")


@dataclass(frozen=True)
class Looked:
    """The samples of one folder, panel by panel."""

    samples: Mapping[str, Sequence[Sample]]
    results: Mapping[str, Sequence[Result]]
    traits: Mapping[str, Sequence[Trait]]
    accepted: Mapping[str, Mapping[draws.Key, bool]]


@dataclass(frozen=True)
class Panel:
    """One panel at round 0 and now; programs and behaviours are numbered alike in all.

    Attributes:
        names: Problem ids, a row each.
        baseline: Round 0's samples, several sets of them.
        current: This round's first look.
        second: What a second look added.
        archive: Samples of rounds between, for recycling.
        judged: Whether answers were judged at all; without execution code is not.
        is_code: Whether answers are Python programs.
    """

    names: tuple[str, ...]
    baseline: Draws
    current: Draws
    second: Draws | None
    archive: Draws | None
    judged: bool
    is_code: bool

    @property
    def pooled(self) -> Draws:
        """This round's samples of both looks."""
        return draws.joined(self.current, self.second) if self.second else self.current


@dataclass(frozen=True)
class Texts:
    """The reference texts under round 0, the round before and this one."""

    baseline: Sequence[TextScore]
    previous: Sequence[TextScore]
    current: Sequence[TextScore]

    def positions(self) -> tuple[Positions, Positions]:
        """Round 0's and this round's laws."""
        return positions.stack(self.baseline), positions.stack(self.current)


@dataclass(frozen=True)
class Evidence:
    """Everything that one decision looks at.

    Attributes:
        round: Which round.
        panels: By name.
        traits: Held-out traits at round 0 and now, of the first look.
        texts: Answers of the probe panel now, problem by problem.
        scores: The reference texts.
        merge: Metrics of the round's merge; empty where it has none.
        leaks: What was found of panel texts in the round's training rows.
    """

    round: int
    panels: Mapping[str, Panel]
    traits: tuple[Sequence[Trait], Sequence[Trait]]
    texts: Sequence[Sequence[str]]
    scores: Texts
    merge: Mapping[str, Any]
    leaks: Mapping[str, Sequence[str]]

    @property
    def probe(self) -> Panel:
        """The probe panel, or the held-out one where no probe panel is drawn."""
        return self.panels.get("probe", self.panels["heldout"])


def read_look(folder: Path, config: FilterConfig, set_sizes: Mapping[PanelName, int]) -> Looked:
    """The samples of an evaluation or a second look, and what the run's filter would make of them.

    The filter sees them in sets as large as a round's first look: what a majority or a duplicate is depends
    on how many there are, and round 0 has more. Programs are not run again for the audit: one that crashed,
    ran out of time or was none did not run.

    Args:
        folder: The stage's folder.
        config: The filter.
        set_sizes: Samples per problem that a round draws, by panel.

    Raises:
        BadArtifactError: the folder lacks a file that this version's monitors need.
    """
    try:
        samples, results = read_rows(folder / SAMPLES, Sample), read_rows(folder / evaluation.RESULTS, Result)
        traits = read_rows(folder / evaluation.TRAITS, Trait)
    except FileNotFoundError as error:
        raise BadArtifactError(
            f"{error.filename} is missing, so the monitors have no round to compare with; it was measured by "
            "an older version: start a new --run"
        ) from None
    by_panel: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        by_panel[sample.panel].append(index)
    chosen = {name: [samples[i] for i in rows] for name, rows in by_panel.items()}
    outcomes = {name: [results[i] for i in rows] for name, rows in by_panel.items()}
    return Looked(
        samples=chosen,
        results=outcomes,
        traits={name: [traits[i] for i in rows] for name, rows in by_panel.items()},
        accepted={
            name: _accepted(chosen[name], outcomes[name], config, set_sizes[cast(PanelName, name)])
            for name in by_panel
        },
    )


def _accepted(
    samples: Sequence[Sample], results: Sequence[Result], config: FilterConfig, set_size: int
) -> dict[draws.Key, bool]:
    sets: dict[int, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        sets[sample.sample_index // set_size].append(index)
    accepted: dict[draws.Key, bool] = {}
    for own in sets.values():
        accepted |= _accepted_of([samples[i] for i in own], [results[i] for i in own], config)
    return accepted


def _accepted_of(
    samples: Sequence[Sample], results: Sequence[Result], config: FilterConfig
) -> dict[draws.Key, bool]:
    ran = {(r.problem_id, r.sample_index) for r in results if r.outcome not in DID_NOT_RUN}
    behaviours = {(r.problem_id, r.sample_index): r.behaviour for r in results}
    passed = {(r.problem_id, r.sample_index) for r in results if r.outcome == "passed"}
    reasons = filtering.judge(samples, config, runs=ran, behaviours=behaviours, passed=passed)
    return {filtering.key(sample): reason is None for sample, reason in zip(samples, reasons, strict=True)}


def gather(
    round_index: int,
    baseline: Looked,
    current: Looked,
    second: Looked | None,
    earlier: Sequence[Looked],
    scores: Texts,
    merge: Mapping[str, Any],
    leaks: Mapping[str, Sequence[str]],
) -> Evidence:
    """The evidence of a round.

    Args:
        round_index: Which round.
        baseline: Round 0.
        current: This round's evaluation.
        second: Its second look, if one was taken.
        earlier: Evaluations of rounds 1 on before this one, the newest first, for recycling.
        scores: The reference texts.
        merge: Metrics of the round's merge.
        leaks: What was found of panel texts in the training rows.
    """
    panels = {}
    for name in current.samples:
        if name in baseline.samples:
            panels[name] = _panel(name, baseline, current, second, earlier)
    shown = "probe" if "probe" in current.samples else "heldout"
    texts: dict[str, list[str]] = defaultdict(list)
    for sample in current.samples[shown]:
        texts[sample.prompt_id].append(sample.text)
    return Evidence(
        round=round_index,
        panels=panels,
        traits=(baseline.traits["heldout"], current.traits["heldout"]),
        texts=list(texts.values()),
        scores=scores,
        merge=merge,
        leaks=leaks,
    )


def _panel(
    name: str, baseline: Looked, current: Looked, second: Looked | None, earlier: Sequence[Looked]
) -> Panel:
    more = [second] if second and name in second.samples else []
    kept = [look for look in earlier if name in look.samples]
    sets = [
        (look.results[name], look.traits[name], look.accepted[name])
        for look in (baseline, current, *more, *kept)
    ]
    names, found = draws.collect(sets)
    width = found[0].samples - found[1].samples  # round 0 can tell what to expect of so many
    archive: Draws | None = None
    for old in found[2 + len(more) :]:
        archive = old if archive is None else draws.joined(archive, old)
    return Panel(
        names=names,
        baseline=found[0],
        current=found[1],
        second=found[2] if more else None,
        archive=archive.part(0, width) if archive else None,
        judged=all(row.outcome != "not_run" for row in current.results[name]),
        is_code=any(row.shape is not None for row in baseline.traits[name]),
    )


def read_scores(folder: Path) -> list[TextScore]:
    """The reference texts' scores of a finished evaluation."""
    return read_rows(folder / evaluation.SCORES, TextScore)
