"""Stage `final`: one model on the panel that no choice was tuned on, under several ways of decoding.

The ways are called arms. The base has two more than a trained model: what the same tokens buy at inference
time, by drawing once more where nothing parsed and by one turn of self-revision. A training gain that those
reach as well is no gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateError

from ssd_loop import evaluation
from ssd_loop.config import EvaluateConfig, SandboxConfig
from ssd_loop.durable import read_json, write_json
from ssd_loop.engines import Engine, Request
from ssd_loop.errors import ConfigError
from ssd_loop.gains import counts, paired, rates
from ssd_loop.judging import answer_of
from ssd_loop.problems import Problem
from ssd_loop.programs import final_answer, parse
from ssd_loop.prompts import REVISION_MESSAGE, Renderer
from ssd_loop.records import Result, Sample, derive_seed, write_rows
from ssd_loop.sampling import SAMPLES, Decoding, Draw, Drawing, completion_seed, draw_all, plan
from ssd_loop.store import SHARDS, Metrics

STAGE_VERSION = 1
FINAL = "final.json"
PANEL: Literal["report"] = "report"

Arm = Literal["as measured", "as sampled", "best decoding", "resampled", "revised"]
# The base's best is the bar; the rest says what kind of gain it is.
RIVALS: tuple[Arm, ...] = ("best decoding", "as sampled", "as measured", "resampled", "revised")
SECOND: tuple[Arm, Arm] = ("resampled", "revised")  # a second answer, from the best decoding's first one


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        arms: Decoding of every arm of one answer.
        samples: Answers per problem of each.
        second: Whether the arms of a second answer are measured too.
        max_model_len: Tokens of the longest prompt and answer; a revision beyond it, or of thinking that was
            cut, keeps the first answer.
    """

    arms: Mapping[Arm, Decoding]
    samples: int
    second: bool
    max_model_len: int

    def settings(self) -> dict[str, Any]:
        """What the stage's result depends on."""
        named = {arm: asdict(decoding) for arm, decoding in self.arms.items()}
        found: dict[str, Any] = {"arms": named, "samples_per_arm": self.samples}
        if self.second:  # both decide which answers are revised, and how
            found["second"] = {"max_model_len": self.max_model_len, "wording": REVISION_MESSAGE}
        return found


def run(
    wanted: Plan,
    config: EvaluateConfig,
    sandbox: SandboxConfig,
    drawing: Drawing,
    *,
    engine: Engine,
    round_index: int,
    out: Path,
) -> Metrics:
    """Measure the weights that the engine holds.

    Writes ``samples.parquet``, ``results.parquet`` and ``final.json``. Arms with equal settings share their
    answers; decoding i has sample indices from i N on, then come second draws, then revisions.
    """
    problems = {p.id: p for p in evaluation.panel_problems(config, PANEL)}
    decodings = list(dict.fromkeys(wanted.arms.values()))
    n = wanted.samples
    # A round may be measured on this panel as well.
    drawing = replace(drawing, run_seed=derive_seed(drawing.run_seed, "final"))
    draws: list[Draw] = []
    for index, decoding in enumerate(decodings):
        asked = list(problems.values())
        draws += plan(drawing, asked, n, decoding=decoding, round_index=round_index, first=index * n)
    rows = draw_all(drawing, draws, engine=engine, policy_round=round_index, out=out)
    again: list[Draw] = []
    if wanted.second:
        at = decodings.index(wanted.arms["best decoding"])
        firsts = {
            (draw.prompt_id, draw.sample_index): (draw, row)
            for draw, row in zip(draws, rows, strict=True)
            if draw.sample_index // n == at
        }
        shift = len(decodings) * n - at * n
        for draw, row in firsts.values():
            problem = problems[draw.prompt_id]
            if not parses(problem, row.text):
                again.append(
                    _other(draw, shift, draw.request.prompt_token_ids, drawing.run_seed, round_index)
                )
        for draw, row in firsts.values():
            said = final_answer(row.text).strip()  # templates take no thinking back, and some refuse it
            prompt = drawing.renderer.revision_ids(problems[draw.prompt_id], said)
            if said and len(prompt) + draw.request.max_new_tokens <= wanted.max_model_len:
                again.append(_other(draw, shift + n, prompt, drawing.run_seed, round_index))
        if again:
            second = out / SHARDS / "second"
            rows += draw_all(drawing, again, engine=engine, policy_round=round_index, out=second)
    results = evaluation.judged(config, sandbox, rows)
    write_rows(out / SAMPLES, Sample, rows)
    write_rows(out / evaluation.RESULTS, Result, results)
    arms = _arms(wanted, decodings, rows, results)
    write_json(out / FINAL, {"panel": PANEL, "problems": len(problems), "samples": n, "arms": arms})
    metrics: Metrics = {
        "samples": len(rows),
        "tokens": sum(len(row.token_ids) for row in rows),
        "prompt_tokens": sum(len(row.prompt_token_ids) for row in rows),
    }
    for name, arm in arms.items():
        if arm["pass_at_1"]:
            key = name.replace(" ", "_")
            metrics[f"{key}_pass_at_1"] = arm["pass_at_1"]["mean"]
            metrics[f"{key}_pass_at_1_se"] = arm["pass_at_1"]["se"]
    return metrics


def check_template(renderer: Renderer) -> None:
    """Refuse a chat template that cannot render a second turn, before anything is spent.

    Raises:
        ConfigError: it raises, or gives no tokens.
    """
    problem = Problem(panel=PANEL, id="example", kind="text", prompt="Say one.")
    try:
        renderer.revision_ids(problem, "one")
    except TemplateError as error:
        raise ConfigError(
            f"the model's chat template refuses a second turn ({error}), which self-revision needs; set "
            "baselines.temperatures to []"
        ) from None


def parses(problem: Problem, text: str) -> bool:
    """Whether there is something to judge: an answer in the form that was asked for, code that parses."""
    answer = answer_of(problem, text)
    return answer is not None and (problem.kind not in evaluation.CODE_KINDS or parse(answer) is not None)


def _other(draw: Draw, shift: int, prompt: tuple[int, ...], run_seed: int, round_index: int) -> Draw:
    """Another answer in place of one that was drawn."""
    index = draw.sample_index + shift
    seed = completion_seed(run_seed, round_index, draw.panel, draw.prompt_id, index)
    request: Request = replace(draw.request, prompt_token_ids=prompt, seed=seed)
    return Draw(draw.panel, draw.prompt_id, index, request)


def _arms(
    wanted: Plan, decodings: Sequence[Decoding], rows: Sequence[Sample], results: Sequence[Result]
) -> dict[str, Any]:
    """What every arm measured and the tokens it took, as plain data."""
    n = wanted.samples
    pairs = {
        (row.prompt_id, row.sample_index): (row, result) for row, result in zip(rows, results, strict=True)
    }
    names = list(dict.fromkeys(row.prompt_id for row in rows))
    found: dict[str, Any] = {}
    for arm, decoding in wanted.arms.items():
        first = decodings.index(decoding) * n
        keys = [(name, first + i) for name in names for i in range(n)]
        found[arm] = _arm(decoding, [(pairs[key][1], [pairs[key][0]]) for key in keys])
    if wanted.second:
        decoding = wanted.arms["best decoding"]
        first = decodings.index(decoding) * n
        for arm, start in zip(SECOND, (len(decodings) * n, len(decodings) * n + n), strict=True):
            answers = []
            for name in names:
                for i in range(n):
                    one = pairs[name, first + i]
                    two = pairs.get((name, start + i))
                    taken = [one[0], two[0]] if two else [one[0]]
                    answers.append(((two or one)[1], taken))
            found[arm] = _arm(decoding, answers) | {
                "kept_first": sum(len(taken) == 1 for _, taken in answers)
            }
    return found


def _arm(decoding: Decoding, answers: Sequence[tuple[Result, list[Sample]]]) -> dict[str, Any]:
    passed = counts(result for result, _ in answers)
    ran = all(result.outcome != "not_run" for result, _ in answers)
    drawn = [row for _, rows in answers for row in rows]
    return {
        **asdict(decoding),
        "pass_at_1": asdict(evaluation.estimate(list(rates(passed).values()))) if ran else None,
        "passed": {name: list(pair) for name, pair in passed.items()} if ran else {},
        "answers": len(drawn),
        "tokens": sum(len(row.token_ids) for row in drawn),
        "prompt_tokens": sum(len(row.prompt_token_ids) for row in drawn),
    }


def compared(base: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """The trained model at its best decoding against every way of decoding the base, paired by problem.

    Args:
        base: `read` of round 0.
        trained: `read` of another round.

    Returns:
        ``{arm of the base: Difference as plain data}``, and under "as measured, both" the plain comparison at
        the settings of every round.
    """

    def rate(of: Mapping[str, Any], arm: str) -> dict[str, float]:
        return rates({name: (pair[0], pair[1]) for name, pair in of["arms"][arm]["passed"].items()})

    found = {}
    for arm in RIVALS:
        if arm in base["arms"] and (pair := paired(rate(base, arm), rate(trained, "best decoding"))):
            found[str(arm)] = asdict(pair)
    if pair := paired(rate(base, "as measured"), rate(trained, "as measured")):
        found["as measured, both"] = asdict(pair)
    return found


def read(folder: Path) -> dict[str, Any]:
    """What a finished stage measured.

    Raises:
        BadArtifactError: the file is missing or torn.
    """
    return read_json(folder / FINAL)
