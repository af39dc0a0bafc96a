"""Stage `evaluate`: what the round's model can do, how varied it is, and how human text surprises it."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np

from ssd_loop.config import EvaluateConfig, PanelName, SandboxConfig
from ssd_loop.durable import finite, write_json
from ssd_loop.engines import Engine
from ssd_loop.errors import ConfigError
from ssd_loop.figures import REPORT, headline
from ssd_loop.gains import counts, rates
from ssd_loop.judging import judge_all, limits_of
from ssd_loop.monitors import signal
from ssd_loop.monitors.degeneracy import loops
from ssd_loop.monitors.draws import collect
from ssd_loop.monitors.positions import K
from ssd_loop.monitors.richness import distinct_at_m
from ssd_loop.problems import Problem, ReferenceText, load_panel, load_reference, thin
from ssd_loop.problems.twins import twins
from ssd_loop.programs import canonical_hash, extract_code
from ssd_loop.prompts import Renderer, content_input
from ssd_loop.records import Result, Sample, TextScore, Trait, write_rows
from ssd_loop.sampling import SAMPLES, Draw, Drawing, decoding_of, draw_all, plan, summary
from ssd_loop.sources import load_tasks
from ssd_loop.store import Input, Metrics

STAGE_VERSION = 2
LOOK_VERSION = 1  # of stage `second_look`
RESULTS, TRAITS, SCORES = "results.parquet", "traits.parquet", "scores.parquet"
REFERENCE = "reference.json"
CODE_KINDS = ("function", "check", "stdin")


@dataclass(frozen=True)
class Estimate:
    """A mean over problems and its standard error; problems are the unit of resampling."""

    mean: float
    se: float


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error; the error of a single value is reported as 0."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(float(np.mean(values)), error)


def sample_counts(config: EvaluateConfig, *, baseline: bool) -> dict[PanelName, int]:
    """Samples per problem of each panel; round 0 draws `baseline_multiplier` times as many."""
    factor = config.baseline_multiplier if baseline else 1
    return {panel: factor * config.counts[panel] for panel in config.panels}


def panel_problems(config: EvaluateConfig, panel: PanelName) -> tuple[Problem, ...]:
    """The problems of a panel, built in or from the source that the settings name, thinned to `limit`."""
    if panel == "twin":
        found = twins(panel_problems(config, "heldout"))
        if not found:
            raise ConfigError(
                "evaluate.panels has twin, but no held-out problem can be renamed: twins are made of Python "
                "functions; leave twin out"
            )
        return found
    source = config.sources.get(panel)
    problems = load_tasks(source, panel, f"evaluate.sources.{panel}") if source else load_panel(panel)
    return thin(problems, config.limit)


def problem_inputs(config: EvaluateConfig, panels: Sequence[PanelName] | None = None) -> dict[str, Input]:
    """How manifests name the problems of some panels; of those that every round measures if left out."""
    named = config.panels if panels is None else panels
    return {name: content_input(panel_problems(config, name)) for name in named}


def plan_panels(
    config: EvaluateConfig,
    drawing: Drawing,
    *,
    counts: Mapping[PanelName, int],
    round_index: int,
    first: Mapping[str, int] = MappingProxyType({}),
) -> list[Draw]:
    """Every draw of one evaluation, panel by panel; `first` tells a panel's first sample index, else 0."""
    decoding = decoding_of(config)
    return [
        draw
        for panel in counts
        for draw in plan(
            drawing,
            panel_problems(config, panel),
            counts[panel],
            decoding=decoding,
            round_index=round_index,
            first=first.get(panel, 0),
        )
    ]


def panel_report(
    problems: Sequence[Problem],
    samples: Sequence[Sample],
    results: Sequence[Result],
    traits: Sequence[Trait],
    config: EvaluateConfig,
) -> dict[str, Any]:
    """What one panel says: pass@k with errors, by tier, outcomes, diversity and cut answers.

    Args:
        problems: The panel's problems.
        samples: Its samples, parallel to `results` and `traits`.
        results: What became of them.
        traits: What the monitors look at.
        config: k of pass@k and m of distinct@m.
    """
    found = dict.fromkeys((p.id for p in problems), (0, 0)) | counts(results)
    tiers: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        tiers[problem.tier].append(problem.id)
    ran = all(row.outcome != "not_run" for row in results)

    def passes(ids: Sequence[str]) -> dict[str, Any]:
        return {
            str(k): asdict(estimate(list(rates({i: found[i] for i in ids}, k).values())))
            for k in config.pass_at
            if all(found[i][1] >= k for i in ids)
        }

    shapes = [trait.shape for trait in traits]
    report: dict[str, Any] = {
        "problems": len(problems),
        **summary(samples),
        "outcomes": dict(sorted(Counter(row.outcome for row in results).items())),
        "pass_at": passes([p.id for p in problems]) if ran else {},
        "tiers": {tier: passes(ids) for tier, ids in sorted(tiers.items())} if ran else {},
        "passed": {p.id: list(found[p.id]) for p in problems} if ran else {},
        "tier_of": {p.id: p.tier for p in problems},
    }
    if all(problem.kind in CODE_KINDS for problem in problems):
        unparsable = sum(shape is None for shape in shapes) / len(shapes)
        report |= {"unparsable_share": unparsable, "diversity": _diversity(samples, shapes, config)}
    return report


def _diversity(
    samples: Sequence[Sample], shapes: Sequence[str | None], config: EvaluateConfig
) -> dict[str, Any]:
    """Structural diversity: distinct@m over programs that parse, per problem with enough of them."""
    by_problem: dict[str, Counter[str]] = defaultdict(Counter)
    for sample, shape in zip(samples, shapes, strict=True):
        if shape is not None:
            by_problem[sample.prompt_id][shape] += 1
    m = config.diversity_at
    values = {
        name: distinct_at_m(list(kinds.values()), m)
        for name, kinds in sorted(by_problem.items())
        if kinds.total() >= m
    }
    overall = asdict(estimate(list(values.values()))) if values else None
    return {"m": m, "distinct": overall, "per_problem": values}


def reference_texts(config: EvaluateConfig, renderer: Renderer) -> list[dict[str, Any]]:
    """The human-written texts as token ids, cut to the same number of tokens for every round."""
    return [
        {"id": text.id, "token_ids": _encode(text, renderer)[: config.reference_tokens]}
        for text in load_reference()
    ]


def _encode(text: ReferenceText, renderer: Renderer) -> list[int]:
    ids: list[int] = renderer.tokenizer(text.text, add_special_tokens=False)["input_ids"]
    return ids


def score_texts(engine: Engine, texts: Sequence[Mapping[str, Any]]) -> list[TextScore]:
    """The model's law along each reference text, with the likeliest tokens of every position."""
    scores = engine.score([text["token_ids"] for text in texts], top_k=K)
    return [
        TextScore(
            text["id"],
            tuple(score.logprobs.tolist()),
            tuple(score.top_ids.ravel().tolist()),
            tuple(score.top_logprobs.ravel().tolist()),
        )
        for text, score in zip(texts, scores, strict=True)
    ]


def reference_report(scores: Sequence[TextScore]) -> dict[str, Any]:
    """Mean negative log-likelihood of each reference text, nats per token, and their perplexity."""
    nll = {score.text_id: -float(np.mean(score.logprobs, dtype=np.float64)) for score in scores}
    overall = estimate(list(nll.values()))
    return {"nll": asdict(overall), "perplexity": float(np.exp(overall.mean)), "per_text": nll}


def signal_report(
    config: EvaluateConfig, results: Sequence[Result], traits: Sequence[Trait]
) -> dict[str, Any] | None:
    """Whether the held-out samples hold something to consolidate; None where answers were not run."""
    own = [row for row in results if row.panel == "heldout"]
    if any(row.outcome == "not_run" for row in own):
        return None
    taken = {(row.problem_id, row.sample_index): True for row in own}
    names, (draws,) = collect([(own, [row for row in traits if row.panel == "heldout"], taken)])
    tiers = {problem.id: problem.tier for problem in panel_problems(config, "heldout")}
    return signal.measure(draws, [tiers[name] for name in names])


def trait(sample: Sample) -> Trait:
    """What the monitors look at in one sample."""
    code = extract_code(sample.text)
    return Trait(
        panel=sample.panel,
        problem_id=sample.prompt_id,
        sample_index=sample.sample_index,
        shape=canonical_hash(code) if code is not None else None,
        tokens=len(sample.token_ids),
        cut=sample.finish_reason == "length",
        loops=loops(sample.token_ids),
        logprob=sample.logprob,
    )


def look(
    config: EvaluateConfig,
    sandbox_config: SandboxConfig,
    draws: Sequence[Draw],
    drawing: Drawing,
    *,
    engine: Engine,
    round_index: int,
    out: Path,
) -> tuple[list[Sample], list[Result], list[Trait]]:
    """Draw and judge samples of some panels.

    Writes ``samples.parquet``, ``results.parquet`` and ``traits.parquet``.
    """
    samples = draw_all(drawing, draws, engine=engine, policy_round=round_index, out=out)
    results = judged(config, sandbox_config, samples)
    traits = [trait(sample) for sample in samples]
    write_rows(out / SAMPLES, Sample, samples)
    write_rows(out / RESULTS, Result, results)
    write_rows(out / TRAITS, Trait, traits)
    return samples, results, traits


def judged(config: EvaluateConfig, sandbox_config: SandboxConfig, samples: Sequence[Sample]) -> list[Result]:
    """What became of samples of some panels, in order."""
    panels: list[PanelName] = sorted({cast(PanelName, sample.panel) for sample in samples})
    problems = {(p.panel, p.id): p for name in panels for p in panel_problems(config, name)}
    return judge_all(
        [(problems[s.panel, s.prompt_id], s) for s in samples],
        limits=limits_of(sandbox_config),
        workers=sandbox_config.workers,
        execute=sandbox_config.execute,
    )


def read_reference(folder: Path) -> list[list[int]]:
    """Token ids of the reference texts that round 0's evaluation kept."""
    texts = json.loads((folder / REFERENCE).read_text(encoding="utf-8"))
    return [text["token_ids"] for text in texts]


def run(
    config: EvaluateConfig,
    sandbox_config: SandboxConfig,
    draws: Sequence[Draw],
    drawing: Drawing,
    *,
    engine: Engine,
    round_index: int,
    reference: Path | None,
    out: Path,
) -> Metrics:
    """Measure the model that the engine holds.

    Writes what `look` does, ``scores.parquet``, ``report.json``, and where no `reference` folder is given
    ``reference.json``, the texts that all later rounds are scored on.
    """
    samples, results, traits = look(
        config, sandbox_config, draws, drawing, engine=engine, round_index=round_index, out=out
    )
    if reference is None:
        write_json(out / REFERENCE, reference_texts(config, drawing.renderer))
    texts = json.loads(((reference or out) / REFERENCE).read_text(encoding="utf-8"))
    scores = score_texts(engine, texts)
    report = {
        "panels": {
            name: panel_report(
                panel_problems(config, name),
                [s for s in samples if s.panel == name],
                [r for r in results if r.panel == name],
                [t for t in traits if t.panel == name],
                config,
            )
            for name in config.panels
        },
        "reference": reference_report(scores),
    }
    write_rows(out / SCORES, TextScore, scores)
    if reference is None:  # the untouched model, before any training
        report["signal"] = signal_report(config, results, traits)
    report = finite(report)
    write_json(out / REPORT, report)
    return {**headline(report), "template_sha256": drawing.renderer.template_sha256()}


def look_metrics(samples: Sequence[Sample], results: Sequence[Result]) -> Metrics:
    """Counts and pass@1 of what `look` drew."""
    passed = Counter(row.panel for row in results if row.outcome == "passed")
    drawn = Counter(row.panel for row in results)
    return {**summary(samples), **{f"{name}_pass_at_1": passed[name] / drawn[name] for name in drawn}}
