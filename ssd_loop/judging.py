"""From an answer to its outcome: run it in the sandbox, compare plain data, never trust it."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from ssd_loop import progress, sandbox
from ssd_loop.config import FilterName, SandboxConfig
from ssd_loop.errors import ConfigError
from ssd_loop.problems import Problem
from ssd_loop.programs import extract_code, final_answer
from ssd_loop.records import Outcome, Result, Sample
from ssd_loop.sandbox import Limits

WALL_PER_CPU = 5.0
# A program may print this many times what is expected before it is stopped for printing too much.
OUTPUT_SLACK = 2
SAMPLES_AT_ONCE = 16384  # of those whose programs are run before training: some hundred MB of answers

T = TypeVar("T")
Verdict = tuple[Outcome, str | None]  # outcome, behaviour

_NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def limits_of(config: SandboxConfig) -> Limits:
    """The limits that the settings ask for; wall time is only a backstop for programs that sleep."""
    wall_s = max(Limits().wall_s, WALL_PER_CPU * config.cpu_s)
    return Limits(cpu_s=config.cpu_s, wall_s=wall_s, memory_mib=config.memory_mib)


def require_sandbox(config: SandboxConfig) -> None:
    """Warn where code runs in the weaker sandbox; nothing where it is not run at all.

    Raises:
        SandboxUnavailableError: no sandbox can run here; says what to run to allow it.
    """
    if config.execute and (why := sandbox.why_not_bubblewrap()):
        progress.say(f"warning: code runs under {sandbox.isolation()}, which closes less: {why}")


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
    return last_number(final_answer(text)) if problem.kind == "exact" else extract_code(text)


def last_number(text: str) -> str | None:
    """The last number in a text as it is written there, thousands commas included."""
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


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
    if problem.kind == "stdin":
        return _program(problem, answer, limits)
    assert problem.kind == "check", problem.kind
    ran = sandbox.run_check(
        problem.preamble + answer, problem.entry_point, problem.preamble, problem.check, limits
    )
    return ran.outcome, None


def check_prompts(filters: Collection[FilterName], prompts: Sequence[Problem]) -> None:
    """Refuse filters that judge answers to prompts which nothing can be judged by.

    Raises:
        ConfigError: some prompts have no tests.
    """
    needing = {"fails_tests", "minority"} & set(filters)
    if needing and any(prompt.kind == "text" for prompt in prompts):
        raise ConfigError(
            f"filter.filters has {min(needing)}, but some prompts have no tests; set prompts.checker and "
            "prompts.columns.tests"
        )


def for_filters(
    filters: Collection[FilterName],
    samples: Iterable[Sample],
    prompts: Sequence[Problem],
    config: SandboxConfig,
) -> dict[str, Any]:
    """What `filtering.judge` is told of the samples' code, run as far as the filters ask for it."""
    problems, limits = {prompt.id: prompt for prompt in prompts}, limits_of(config)
    judges = bool({"minority", "fails_tests"} & set(filters))
    found: dict[str, Any] = {"runs": set()} if "does_not_run" in filters else {}
    found |= {"behaviours": {}, "passed": set()} if judges else {}
    rows = iter(samples if found else ())
    while some := list(islice(rows, SAMPLES_AT_ONCE)):
        if "does_not_run" in filters:
            found["runs"] |= running(some, problems, limits=limits, workers=config.workers)
        if judges:
            pairs = [(problems[row.prompt_id], row) for row in some]
            results = judge_all(pairs, limits=limits, workers=config.workers, execute=True)
            found["behaviours"] |= {(r.problem_id, r.sample_index): r.behaviour for r in results}
            found["passed"] |= {(r.problem_id, r.sample_index) for r in results if r.outcome == "passed"}
    return found


def running(
    samples: Sequence[Sample],
    problems: Mapping[str, Problem],
    *,
    limits: Limits,
    workers: int,
) -> set[tuple[str, int]]:
    """(prompt_id, sample_index) of the samples whose program runs on the probe or sample inputs."""
    jobs = [partial(_runs, problems[s.prompt_id], s.text, limits) for s in samples]
    ran = _run(jobs, workers)
    return {(s.prompt_id, s.sample_index) for s, ok in zip(samples, ran, strict=True) if ok}


def _run(jobs: Sequence[Callable[[], T]], workers: int) -> list[T]:
    with progress.task("run", len(jobs), "programs") as task:
        return sandbox.run_all(jobs, workers=workers, on_done=task.advance)


def _runs(problem: Problem, text: str, limits: Limits) -> bool:
    """Whether the program runs; what it returns or prints is not looked at.

    A function is called on the probe inputs, without those on the input of its first test, and without
    that (a hidden check) only loaded. A program gets the sample input.
    """
    code = extract_code(text)
    if code is None:
        return False
    if problem.kind == "stdin":
        return sandbox.run_program(code, stdin=problem.cases[0].stdin, limits=limits).exit_code == 0
    if problem.kind not in ("function", "check"):
        return False
    probes = problem.probes or [call for call, _ in problem.tests[:1]]
    calls = sandbox.call_function(problem.preamble + code, problem.entry_point, probes, limits)
    return calls.status == "ok" and all(isinstance(r, sandbox.Returned) for r in calls.returns)


def _function(problem: Problem, code: str, limits: Limits) -> Verdict:
    if not problem.probes:
        return _calls(problem, code, limits)
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


def _calls(problem: Problem, code: str, limits: Limits) -> Verdict:
    """The tests of a data set: many and heavy, so each has the limits to itself, up to the first failure.

    A tuple passes for a list, since what is expected was written as JSON, which has no tuples.
    """
    returned: list[sandbox.Return] = []
    for call, expected in problem.tests:
        ran = sandbox.call_function(problem.preamble + code, problem.entry_point, [call], limits)
        if ran.status != "ok":
            return ran.status, None
        returned += ran.returns
        got, want = ran.returns[0], ast.literal_eval(expected)
        value = got.value if isinstance(got, sandbox.Returned) else Ellipsis
        value = list(value) if isinstance(value, tuple) and isinstance(want, list) else value
        if not sandbox.same(value, want):
            return "failed", _hash(sandbox.canonical(returned))
    return "passed", _hash(sandbox.canonical(returned))


def _program(problem: Problem, code: str, limits: Limits) -> Verdict:
    """A program's output on every case up to the first that is wrong.

    A program may end itself by `sys.exit(0)`, as competition programs do: its output alone decides.
    """
    printed = []
    for case in problem.cases:
        room = max(limits.output_kib, OUTPUT_SLACK * len(case.stdout.encode()) >> 10)
        ran = sandbox.run_program(code, stdin=case.stdin, limits=replace(limits, output_kib=room))
        ended = ran.exit_code == 0
        if not ended and ran.outcome != "failed":
            return ran.outcome, None
        printed.append((ran.exit_code, _tokens(ran.stdout)))
        if not ended or not same_output(ran.stdout, case.stdout):
            return "failed", _hash(repr(printed))
    return "passed", _hash(repr(printed))


def same_output(printed: str, expected: str) -> bool:
    """Whether two outputs agree line by line in their words; decimal numbers agree by value.

    Blank lines and spaces around are ignored. Source: what LiveCodeBench's judge tolerates.
    """
    lines, wanted = _tokens(printed), _tokens(expected)
    return len(lines) == len(wanted) and all(
        len(words) == len(others) and all(map(_same_token, words, others))
        for words, others in zip(lines, wanted, strict=True)
    )


def _tokens(output: str) -> list[list[str]]:
    return [line.split() for line in output.strip().split("\n")]


def _same_token(word: str, other: str) -> bool:
    if word == other:
        return True
    try:
        value, wanted = Decimal(word), Decimal(other)
    except InvalidOperation:
        return False
    return value.is_finite() and wanted.is_finite() and value == wanted


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
