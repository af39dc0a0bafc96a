"""Stage `monitor`: from the folders of finished stages to a decision (`ssd_loop.monitors` holds the rule)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssd_loop import durable, evaluation, filtering, training
from ssd_loop.config import PanelName, RunConfig
from ssd_loop.figures import read_report
from ssd_loop.monitors import evidence, leaks, rule
from ssd_loop.monitors.decision import DECISION, Decision, summary
from ssd_loop.monitors.selection import History
from ssd_loop.problems import Problem
from ssd_loop.records import Sample, read_rows
from ssd_loop.store import Metrics

# Rounds whose programs a new one is compared with: round 0 has four sets, one of them its own.
ARCHIVE_ROUNDS = 3


@dataclass(frozen=True)
class Folders:
    """What one decision reads.

    Attributes:
        round: Which round is decided on.
        evaluations: Evaluation folder of every measured round up to this one, by round; 0 is the baseline.
        second: Folder of this round's second look, if one was taken.
        merge: Metrics of this round's merge.
        seeds: Evaluations of the first round's extra trainings, which differ in their seed alone.
        first: That round.
    """

    round: int
    evaluations: Mapping[int, Path]
    second: Path | None
    merge: Mapping[str, Any]
    seeds: tuple[Path, ...] = ()
    first: int = 1


def gather(folders: Folders, config: RunConfig, leaked: Mapping[str, Sequence[str]]) -> evidence.Evidence:
    """Everything that the decision looks at.

    Args:
        folders: Where it is.
        config: The run's settings; its filter is audited.
        leaked: What was found of panel texts in the training rows, by guard.

    Raises:
        BadArtifactError: a folder lacks what the monitors read.
    """
    n = folders.round
    before = [r for r in sorted(folders.evaluations) if r < n]
    sizes = config.evaluate.counts
    looked = {
        r: evidence.read_look(folders.evaluations[r], config.filter, sizes)
        for r in {0, n, *_archived(before)}
    }
    scores = {r: evidence.read_scores(folders.evaluations[r]) for r in {0, before[-1], n}}
    return evidence.gather(
        n,
        looked[0],
        looked[n],
        evidence.read_look(folders.second, config.filter, sizes) if folders.second else None,
        [looked[r] for r in _archived(before)],
        evidence.Texts(scores[0], scores[before[-1]], scores[n]),
        folders.merge,
        leaked,
    )


def _archived(before: Sequence[int]) -> list[int]:
    """The rounds that the archive is made of, the newest first."""
    return [r for r in reversed(before) if r][:ARCHIVE_ROUNDS]


def seed_noise(folders: Folders, config: RunConfig) -> dict[str, float]:
    """Standard deviation between training seeds, by monitor; empty if no extra trainings were paid for."""
    if not folders.seeds:
        return {}
    trained = [folders.evaluations[folders.first], *folders.seeds]
    alone = [
        gather(
            replace(
                folders,
                round=folders.first,
                evaluations={0: folders.evaluations[0], folders.first: folder},
                second=None,
            ),
            config,
            {},
        )
        for folder in trained
    ]
    return rule.noise_between(alone, rule.setup_of(config))


def leaked(kept: Path, config: RunConfig, prompts: Sequence[Problem]) -> dict[str, list[str]]:
    """Panel texts and canaries found in a round's training rows, by guard."""
    rows = read_rows(kept / filtering.KEPT, Sample)
    names = [f"sample {row.sample_index} of {row.prompt_id}" for row in rows]
    texts = [(name, row.text) for name, row in zip(names, rows, strict=True)]
    known = [text for prompt in prompts for text in (prompt.prompt, prompt.starter_code, prompt.solution)]
    told = {prompt.id: f"{prompt.prompt}\n{prompt.starter_code}" for prompt in prompts}
    tasks = {name: told.get(row.prompt_id, "") for name, row in zip(names, rows, strict=True)}
    overlaps = leaks.overlaps(texts, leaks.said(measured_problems(config)), known, tasks)
    return {
        "panel_overlap": [f"{hit.row}: {hit.words!r} of {hit.problem}" for hit in overlaps],
        "canaries": leaks.canary_hits(texts),
    }


def prompt_leaks(config: RunConfig, prompts: Sequence[Problem]) -> list[leaks.Overlap]:
    """Training prompts that share text with a panel."""
    panels = measured_problems(config)
    if config.baselines.temperatures and "report" not in config.evaluate.panels:
        panels += evaluation.panel_problems(config.evaluate, "report")
    return leaks.overlaps(_texts("prompt", prompts), leaks.said(panels))


def _texts(what: str, problems: Sequence[Problem]) -> list[tuple[str, str]]:
    """What tasks say, each under a name for messages."""
    return [(f"{what} {p.id}", f"{p.prompt}\n{p.starter_code}\n{p.solution}") for p in problems]


def measured_problems(config: RunConfig) -> list[Problem]:
    """The problems of every panel that is measured; twins say what the held-out problems say."""
    names = [name for name in config.evaluate.panels if name != "twin"]
    return [p for name in names for p in evaluation.panel_problems(config.evaluate, name)]


HELD_APART: tuple[PanelName, PanelName] = ("heldout", "report")


def shared_with_report(config: RunConfig) -> list[leaks.Overlap]:
    """Held-out problems that share text with the panel of the final figure."""
    heldout, report = (evaluation.panel_problems(config.evaluate, name) for name in HELD_APART)
    return leaks.overlaps(_texts("problem", heldout), leaks.said(report))


def asks_again(folders: Folders, config: RunConfig) -> tuple[PanelName, ...]:
    """The panels that a second look is asked of."""
    setup = rule.setup_of(config, seed_noise(folders, config))
    asked = rule.asks_again(gather(replace(folders, second=None), config, {}), setup)
    return tuple(name for name in config.evaluate.panels if name in asked)


def decide(
    folders: Folders,
    config: RunConfig,
    leaked: Mapping[str, Sequence[str]],
    earlier: Sequence[Decision],
) -> Decision:
    """The decision after a round, given the run's own decisions before."""
    setup = rule.setup_of(config, seed_noise(folders, config))
    seen = gather(folders, config, leaked)
    history = _history(folders.evaluations, folders.round + 1)
    return rule.decide(seen, setup, history=history, earlier=earlier, limit=rule.thresholds(seen, setup))


def _history(evaluations: Mapping[int, Path], rounds: int) -> History:
    """The evaluation reports of so many rounds, from round 0 on; None where one was not measured."""
    return [read_report(evaluations[r]) if r in evaluations else None for r in range(rounds)]


def run(
    folders: Folders,
    config: RunConfig,
    leaked: Mapping[str, Sequence[str]],
    earlier: Sequence[Decision],
    *,
    out: Path,
) -> Metrics:
    """Write ``decision.json``."""
    decision = decide(folders, config, leaked, earlier)
    durable.write_json(out / DECISION, decision.to_json())
    return summary(decision)


def run_fallen(
    round_index: int, adapter: Path, step: int, evaluations: Mapping[int, Path], *, out: Path
) -> Metrics:
    """Write ``decision.json`` of a round that training discarded."""
    probe = json.loads((adapter / training.PROBE).read_text(encoding="utf-8"))
    decision = rule.fallen(round_index, step, probe, _history(evaluations, round_index))
    durable.write_json(out / DECISION, decision.to_json())
    return summary(decision)


def settings(config: RunConfig) -> dict[str, Any]:
    """The settings that a decision depends on."""
    return {
        **config.monitor.result_settings(),
        "filter": config.filter.result_settings(),
        "evaluate": config.evaluate.result_settings(),
        "seed": config.sample.seed,
    }
