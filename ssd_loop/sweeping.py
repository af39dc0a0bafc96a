"""Stage `sweep`: one model over a grid of decoding settings, on the held-out problems.

What training gained is compared with what decoding alone could gain: the paper tunes the base's temperature
(section 3.3), and was faulted for leaving out the base at the very settings that drew its training data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from ssd_loop import evaluation
from ssd_loop.config import BaselinesConfig, EvaluateConfig, RunConfig, SampleConfig, SandboxConfig
from ssd_loop.durable import read_json, write_json
from ssd_loop.engines import Engine
from ssd_loop.gains import counts, rates
from ssd_loop.records import derive_seed
from ssd_loop.sampling import Decoding, Draw, Drawing, decoding_of, plan
from ssd_loop.store import Metrics

STAGE_VERSION = 1
SWEEP = "sweep.json"
PANEL: Literal["heldout"] = "heldout"


def as_sampled(sample: SampleConfig, config: EvaluateConfig) -> Decoding:
    """How the training samples are drawn, with an answer's length when measured."""
    return Decoding(sample.temperature, sample.top_k, sample.top_p, config.max_new_tokens)


def grid(sweep: BaselinesConfig, sample: SampleConfig, config: EvaluateConfig) -> list[Decoding]:
    """The points in order: as measured, as sampled, then the grid; equal ones once."""
    points = [decoding_of(config), as_sampled(sample, config)]
    points += [
        Decoding(t, k, p, config.max_new_tokens)
        for t, k, p in product(sweep.temperatures, sweep.top_k, sweep.top_p)
    ]
    return list(dict.fromkeys(points))


def settings(config: RunConfig) -> dict[str, Any]:
    """What a sweep's result depends on besides how a round is measured."""
    points = grid(config.baselines, config.sample, config.evaluate)
    return {
        "points": [asdict(point) for point in points],
        "samples_per_point": config.baselines.samples_per_problem,
    }


def run(
    points: Sequence[Decoding],
    samples: int,
    config: EvaluateConfig,
    sandbox: SandboxConfig,
    drawing: Drawing,
    *,
    engine: Engine,
    round_index: int,
    out: Path,
) -> Metrics:
    """Measure the weights that the engine holds at every point; point i has sample indices from i N on.

    Writes what `evaluation.look` does, and ``sweep.json``.

    Args:
        points: Decoding settings.
        samples: N, completions per problem at each of them.
    """
    problems = evaluation.panel_problems(config, PANEL)
    # Not the answers that chose the best round.
    drawing = replace(drawing, run_seed=derive_seed(drawing.run_seed, "sweep"))
    draws: list[Draw] = []
    for index, point in enumerate(points):
        first = index * samples
        draws += plan(drawing, problems, samples, decoding=point, round_index=round_index, first=first)
    found, results, _ = evaluation.look(
        config, sandbox, draws, drawing, engine=engine, round_index=round_index, out=out
    )
    ran = all(row.outcome != "not_run" for row in results)
    rows = []
    for index, point in enumerate(points):
        own = [row for row in results if row.sample_index // samples == index]
        rate = evaluation.estimate(list(rates(counts(own)).values())) if ran else None
        tokens = sum(len(row.token_ids) for row in found if row.sample_index // samples == index)
        rows.append({**asdict(point), "pass_at_1": asdict(rate) if rate else None, "tokens": tokens})
    write_json(out / SWEEP, {"panel": PANEL, "samples_per_problem": samples, "points": rows})
    metrics = evaluation.look_metrics(found, results) | {"points": len(points)}
    if (top := best(rows)) is not None:
        metrics |= {f"best_{name}": top[name] for name in ("temperature", "top_k", "top_p")}
        metrics["best_pass_at_1"] = top["pass_at_1"]["mean"]
    return metrics


def best(points: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The point with the highest pass@1, the first of equal ones; None where answers were not run.

    It is the luckiest as well as perhaps the best: what it is worth is measured on other problems.
    """
    rated = [point for point in points if point["pass_at_1"] is not None]
    return max(rated, key=lambda point: point["pass_at_1"]["mean"], default=None)


def point_decoding(point: Mapping[str, Any]) -> Decoding:
    """A point's settings."""
    return Decoding(point["temperature"], point["top_k"], point["top_p"], point["max_new_tokens"])


def read(folder: Path) -> dict[str, Any]:
    """The points of a finished sweep and what they measured.

    Raises:
        BadArtifactError: the file is missing or torn.
    """
    return read_json(folder / SWEEP)
