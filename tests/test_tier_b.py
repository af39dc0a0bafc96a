"""Tier B of the collapse test bed: its grammar against the judge, its tokenizer, and real rounds of a toy."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks.collapse import tier_b
from benchmarks.collapse.toy import data, engine, loop, model, modes, tokens
from benchmarks.collapse.toy import grammar as g
from ssd_loop import judging, sandbox
from ssd_loop.config import DataConfig, SandboxConfig
from ssd_loop.problems import Problem
from ssd_loop.problems.twins import twin
from ssd_loop.programs import canonical_hash, extract_code
from ssd_loop.sources import load_tasks

TASKS = (*g.tasks("A"), *g.tasks("B"))
LIMITS = judging.limits_of(SandboxConfig())


@pytest.fixture(scope="module")
def panels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    data.write(folder)
    return folder


def problems(folder: Path, name: str) -> tuple[Problem, ...]:
    config = DataConfig.model_validate(data.source(folder, name))
    return load_tasks(config, "heldout" if name == "probe" else name, name)


def test_domains_share_all_parts_and_no_task() -> None:
    inside, near = g.tasks("A"), g.tasks("B")
    assert len(inside) >= 40
    assert len(inside) + len(near) >= 100  # so that recycling and self-judgement are decided on
    assert not {task.id for task in inside} & {task.id for task in near}
    for part in ("aggregate", "modifier"):
        assert {getattr(task, part) for task in inside} == {getattr(task, part) for task in near}


def test_every_task_has_a_law_over_four_right_programs_and_mistakes() -> None:
    for task in TASKS:
        law = g.law(task)
        assert sum(law.values()) == pytest.approx(1.0)
        right = [program for program in law if program.kind == "right"]
        assert sum(law[program] for program in right) == pytest.approx(g.RIGHT[task.tier])
        shapes = {canonical_hash(g.source(task, program)) for program in right}
        assert len(shapes) == len(g.FORMS), task.id
        assert all(30 <= len(g.source(task, program)) <= 90 for program in right)


def test_names_and_comments_do_not_change_the_shape() -> None:
    style = g.Style("task_b2d3", "arg_1", "n", g.COMMENTS)
    for task in TASKS[::7]:
        for program in g.law(task):
            plain, dressed = g.source(task, program), g.source(task, program, style)
            assert plain != dressed
            assert canonical_hash(plain) == canonical_hash(dressed)


def judged(panels: Path, tasks: tuple[g.Task, ...]) -> dict[tuple[str, g.Program], judging.Verdict]:
    known = {problem.id: problem for problem in problems(panels, "probe")}
    asked = [(task, program) for task in tasks for program in g.law(task)]
    answers = [extract_code(g.answer(*pair)) for pair in asked]
    jobs = [
        partial(judging.judge, known[task.id], answer, limits=LIMITS, execute=True)
        for (task, _), answer in zip(asked, answers, strict=True)
    ]
    verdicts = sandbox.run_all(jobs, workers=2, on_done=lambda: None)
    return {(task.id, program): verdict for (task, program), verdict in zip(asked, verdicts, strict=True)}


def agree(task: g.Task, verdicts: dict[tuple[str, g.Program], judging.Verdict]) -> None:
    for kind in g.kinds(task):
        found = {verdicts[task.id, g.Program(kind, form)] for form in g.FORMS}
        assert len(found) == 1, (task.id, kind)  # one outcome, one behaviour
        assert found.pop()[0] == ("passed" if kind == "right" else "failed"), (task.id, kind)


def test_right_programs_pass_and_mistakes_fail_in_the_judge(panels: Path) -> None:
    chosen = TASKS[::20]
    verdicts = judged(panels, chosen)
    for task in chosen:
        agree(task, verdicts)


@pytest.mark.slow
def test_all_programs_do_in_the_judge_what_they_are_listed_as(panels: Path) -> None:
    verdicts = judged(panels, TASKS)
    for task in TASKS:
        agree(task, verdicts)


def test_the_engine_reads_the_panels_and_makes_twins(panels: Path) -> None:
    for name, count in (("prompts", len(g.tasks("A"))), ("heldout", len(g.tasks("B"))), ("ood", g.FAR)):
        assert len(problems(panels, name)) == count
    asked = problems(panels, "heldout")
    assert {problem.kind for problem in asked} == {"function"}
    assert all(twin(problem) is not None for problem in asked)
    assert {problem.kind for problem in problems(panels, "ood")} == {"exact"}


def test_the_tokenizer_gives_back_every_text_and_names_all_of_it() -> None:
    tokenizer, rng = tokens.build(), random.Random(0)
    assert len(tokenizer) <= 128
    talks = [g.talk(domain, rng, 2, renamed=bool(i % 2)) for domain in ("A", "B", "C") for i in range(60)]
    texts = [tokens.written(talk) for talk in talks] + [text.text for text in data.references()]
    for text in texts:
        ids = tokens.encoded(tokenizer, text)
        assert tokenizer.decode(ids) == text
        assert tokens.is_known(ids, tokenizer)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "two plus one"}], tokenize=False)
    assert tokens.is_known(tokens.encoded(tokenizer, prompt), tokenizer)


def test_twins_are_asked_in_known_symbols(panels: Path) -> None:
    tokenizer = tokens.build()
    for problem in problems(panels, "heldout"):
        renamed = twin(problem)
        assert renamed is not None
        assert tokens.is_known(tokens.encoded(tokenizer, renamed.prompt), tokenizer)


def test_the_memory_of_verdicts_runs_an_answer_once(tmp_path: Path) -> None:
    asked = []

    def judge(problem: Problem, answer: str | None, **_: object) -> judging.Verdict:
        asked.append(answer)
        return ("timeout" if answer == "slow" else "passed"), "b"

    problem = Problem("heldout", "a", "function", "x", entry_point="f", tests=(("f()", "1"),))
    for _ in range(2):  # the second reads the file
        memory = engine.remembering(judge, tmp_path / "verdicts.jsonl")
        for answer in ("one", "one", "slow", None):
            memory(problem, answer, limits=LIMITS, execute=True)
    assert asked.count("one") == 1
    assert asked.count("slow") == asked.count(None) == 2


def test_the_report_tells_detection_from_false_alarms() -> None:
    def row(mode: str, seed: int, stop: int | None, name: str = "none") -> dict[str, object]:
        last = stop or 6
        rounds = [
            {
                "round": n,
                "verdict": "stop" if n == stop else "continue",
                "attribution": name if n == stop else "none",
                "alarms": ["fork_loss"] if n == stop else [],
                "seconds": {"train": 1.0},
            }
            for n in range(1, last + 1)
        ]
        return {"mode": mode, "seed": seed, "rounds": rounds, "error": None, "load": 1.0}

    rows = [row("C2", 0, 3, "sharpening"), row("C2", 1, 5, "noise"), row("C2", 2, None), row("C2", 3, 2, "x")]
    report = tier_b.reported([*rows, row("H0", 1000, None), row("H1", 1001, 4, "leak")], 6)
    found = report["modes"]["C2"]
    assert (found["early"], found["detected"]) == (1, pytest.approx(2 / 3))
    assert found["attribution"]["right"] == 0.5
    assert report["pooled"]["rate"] == 0.5
    assert "C2 sharpening" in tier_b.tables(report)


@pytest.mark.slow
def test_a_toy_is_healthy_first_and_found_ill_when_it_is_provoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engine.GENTLE["evaluate"], "limit", 12)  # problems of a panel
    toy = model.build(model.Recipe(steps=200), tmp_path / "models")
    data.write(tmp_path / "data")
    said: list[str] = []
    with engine.patched(tmp_path / "verdicts.jsonl"):
        cliff = replace(modes.ALL["C13"], onset=2)
        found = loop.drive(tmp_path, cliff, 0, 2, toy, said.append)
        again = loop.drive(tmp_path, cliff, 0, 2, toy, said.append)
    assert again["rounds"] == found["rounds"]  # finished stages are used as they are
    healthy, provoked = found["rounds"]
    assert (healthy["verdict"], healthy["alarms"]) == ("continue", [])
    assert 0.0 < healthy["numbers"]["heldout_pass_at_1"] < 0.95
    assert (provoked["verdict"], provoked["kind"], provoked["attribution"]) == ("stop", "guard", "cliff")
    lines = (tmp_path / "verdicts.jsonl").read_text().splitlines()
    keys = [json.loads(line)["key"] for line in lines]
    assert len(keys) == len(set(keys))
