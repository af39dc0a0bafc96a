"""From an answer to its outcome: run it in the sandbox, compare plain data, never trust it."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import TypeVar

from ssd_loop import progress, sandbox
from ssd_loop.config import SandboxConfig
from ssd_loop.problems import Problem
from ssd_loop.programs import extract_code
from ssd_loop.records import Outcome, Result, Sample
from ssd_loop.sandbox import Limits

WALL_PER_CPU = 5.0

T = TypeVar("T")
Verdict = tuple[Outcome, str | None]  # outcome, behaviour

_NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def limits_of(config: SandboxConfig) -> Limits:
    """The limits that the settings ask for; wall time is only a backstop for programs that sleep."""
    wall_s = max(Limits().wall_s, WALL_PER_CPU * config.cpu_s)
    return Limits(cpu_s=config.cpu_s, wall_s=wall_s, memory_mib=config.memory_mib)


def judge_all(
    pairs: Sequence[tuple[Problem, Sample]],
    *,
    limits: Limits,
    workers: int,
    execute: bool,
) -> list[Result]:
    """Outcome and behaviour of every sample, in order.

    Equal answers to the same problem are run once.
    """
    answers = [(problem, answer_of(problem, sample.text)) for problem, sample in pairs]
    distinct = list(dict.fromkeys((p.panel, p.id, a) for p, a in answers))
    problems = {(p.panel, p.id): p for p, _ in answers}
    jobs = [
        partial(judge, problems[panel, name], answer, limits=limits, execute=execute)
        for panel, name, answer in distinct
    ]
    verdicts = dict(zip(distinct, _run(jobs, workers), strict=True))
    results = []
    for (problem, answer), (_, sample) in zip(answers, pairs, strict=True):
        outcome, behaviour = verdicts[problem.panel, problem.id, answer]
        results.append(Result(problem.panel, problem.id, sample.sample_index, outcome, behaviour))
    return results


def answer_of(problem: Problem, text: str) -> str | None:
    """What is judged: the last code block, or for exact answers the last number; None without one."""
    if problem.kind == "exact":
        numbers = _NUMBER.findall(text)
        return numbers[-1] if numbers else None
    return extract_code(text)


def judge(problem: Problem, answer: str | None, *, limits: Limits, execute: bool) -> Verdict:
    """Outcome and behaviour of one answer."""
    if answer is None:
        return "no_code", None
    if problem.kind == "exact":
        return _exact(problem, answer)
    if not execute:
        return "not_run", None
    if problem.kind == "function":
        return _function(problem, answer, limits)
    if problem.kind == "shell":
        return _shell(problem, answer, limits)
    assert problem.kind == "check", problem.kind
    ran = sandbox.run_check(
        problem.preamble + answer, problem.entry_point, problem.preamble, problem.check, limits
    )
    return ran.outcome, None


def running(
    samples: Sequence[Sample],
    problems: Mapping[str, Problem],
    *,
    limits: Limits,
    workers: int,
) -> set[tuple[str, int]]:
    """(prompt_id, sample_index) of the samples whose program runs on the probe inputs."""
    jobs = [partial(_runs, problems[s.prompt_id], s.text, limits) for s in samples]
    ran = _run(jobs, workers)
    return {(s.prompt_id, s.sample_index) for s, ok in zip(samples, ran, strict=True) if ok}


def _run(jobs: Sequence[Callable[[], T]], workers: int) -> list[T]:
    with progress.task("run", len(jobs), "programs") as task:
        return sandbox.run_all(jobs, workers=workers, on_done=task.advance)


def _runs(problem: Problem, text: str, limits: Limits) -> bool:
    """Whether the entry point can be called on the probe inputs; what it returns is not looked at."""
    code = extract_code(text)
    if code is None or problem.kind != "function":
        return False
    calls = sandbox.call_function(problem.preamble + code, problem.entry_point, problem.probes, limits)
    return calls.status == "ok" and all(isinstance(r, sandbox.Returned) for r in calls.returns)


def _function(problem: Problem, code: str, limits: Limits) -> Verdict:
    tests = [call for call, _ in problem.tests]
    ran = sandbox.call_function(
        problem.preamble + code, problem.entry_point, [*tests, *problem.probes], limits
    )
    if ran.status != "ok":
        return ran.status, None
    returns, probed = ran.returns[: len(tests)], ran.returns[len(tests) :]
    expected = [ast.literal_eval(value) for _, value in problem.tests]
    right = all(
        isinstance(got, sandbox.Returned) and sandbox.same(got.value, want)
        for got, want in zip(returns, expected, strict=True)
    )
    return ("passed" if right else "failed"), _hash(sandbox.canonical(probed))


def _shell(problem: Problem, command: str, limits: Limits) -> Verdict:
    outcome: Outcome = "passed"
    printed = []
    for case in problem.cases:
        ran = sandbox.run_shell(command, files=case.files, limits=limits)
        if ran.outcome in ("timeout", "crashed"):
            return ran.outcome, None
        printed.append(ran.stdout)
        if ran.outcome != "passed" or ran.stdout.rstrip() != case.stdout.rstrip():
            outcome = "failed"
    return outcome, _hash(repr(printed))


def _exact(problem: Problem, answer: str) -> Verdict:
    try:
        value = Decimal(answer.replace(",", ""))
    except InvalidOperation:
        return "no_code", None
    outcome: Outcome = "passed" if value == Decimal(problem.answer) else "failed"
    return outcome, _hash(str(value.normalize()))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
