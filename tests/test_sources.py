"""Data sets of well-known shapes become tasks by settings alone, and are judged in the real sandbox."""

from __future__ import annotations

import base64
import datetime
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ssd_loop import config_file
from ssd_loop.config import DataConfig, Range
from ssd_loop.errors import ConfigError
from ssd_loop.evaluation import panel_problems
from ssd_loop.judging import judge, running
from ssd_loop.problems import Problem, content_hash, load_panel
from ssd_loop.prompts import content_input, load_prompts, message
from ssd_loop.sandbox import Limits
from ssd_loop.sources import load_tasks, matches, select, value_in
from tests.rows import fenced, function, sample

LIMITS = Limits(cpu_s=2.0)

# What the shipped recipes say, but for where the rows lie.
RECIPE = """
prompts:
  source: SEED_SFT
  subset: seed_sft
  prompt_column: question
  columns: {starter_code: starter_code}
  where: {is_passed: true}
evaluate:
  sources:
    heldout:
      source: TEST6
      prompt_column: question_content
      id_column: question_id
      columns:
        starter_code: starter_code
        tier: difficulty
        tests: [public_test_cases, private_test_cases]
        entry_point: metadata.func_name
      where: {contest_date: {min: 2025-02, max: 2025-05}}
      checker: stdin
  limit: null
"""


@pytest.fixture(autouse=True)
def no_shared_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loaded(source: Path, where: str = "prompts", **settings: Any) -> tuple[Problem, ...]:
    config = DataConfig.model_validate({"source": str(source), **settings})
    return load_tasks(config, "heldout", where)


def outcome(problem: Problem, code: str) -> str:
    return judge(problem, code, limits=LIMITS, execute=True)[0]


# --- rStar-Coder -----------------------------------------------------------------------------------


def seed_rows() -> list[dict[str, Any]]:
    """Three tasks that count, in seven rows with the columns of rStar-Coder's seed_sft."""
    first, second = "Add two\nnumbers.", "Reverse a word."
    starter = "def rev(word):\n"
    rows = [
        ("seed_1", first, "", False),
        ("seed_1", first, "", True),
        ("seed_1", "Add two  numbers. ", "", True),
        ("seed_2", second, "", True),
        ("seed_3", second, starter, True),
        ("seed_4", "Never solved.", "", False),
        ("seed_4", "Not known.", "", None),
    ]
    return [
        {
            "question_id": name,
            "question": question,
            "starter_code": starter_code,
            "response": f"<think>long</think> {number}",
            "verified": number % 2 == 0,
            "is_passed": is_passed,
        }
        for number, (name, question, starter_code, is_passed) in enumerate(rows)
    ]


def seed_sft(folder: Path) -> Path:
    (folder / "seed_sft").mkdir(parents=True)
    for part in range(2):
        table = pa.Table.from_pylist(seed_rows()[part::2] if part else seed_rows())
        pq.write_table(table, folder / "seed_sft" / f"data-0000{part}-of-00002.parquet")
    card = {"configs": [{"config_name": "seed_sft", "data_files": "seed_sft/*.parquet"}]}
    card["configs"].append({"config_name": "seed_testcase", "data_files": "seed_sft/*0-of*.parquet"})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    return folder


def recipe(tmp_path: Path) -> Any:
    """The settings of the recipe, read as a run reads them, on small data of the same shape."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        RECIPE.replace("SEED_SFT", str(seed_sft(tmp_path / "rstar"))).replace(
            "TEST6", str(jsonl(tmp_path / "test6.jsonl", lcb_rows()))
        )
    )
    return config_file.load(path, {})


def test_the_prompts_of_rstar_coder_are_its_distinct_passed_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = load_prompts(recipe(tmp_path).prompts)
    assert [(p.prompt, p.starter_code, p.kind) for p in prompts] == [
        ("Add two\nnumbers.", "", "text"),
        ("Reverse a word.", "", "text"),
        ("Reverse a word.", "def rev(word):\n", "text"),
    ]
    assert all(len(p.id) == 16 for p in prompts)
    assert len({p.id for p in prompts}) == 3
    said = capsys.readouterr().err
    assert "10 rows of" in said
    assert "4 filtered out, 3 repeated, 3 kept" in said
    stdin, _, starter = map(message, prompts)
    assert stdin.startswith("Add two\nnumbers.\n\n")
    assert "standard input" in stdin
    assert starter.startswith("Reverse a word.\n\n")
    assert "```python\ndef rev(word):\n```" in starter
    assert "standard input" not in starter


def test_ids_can_be_a_column_and_solutions_are_kept(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "seed.jsonl", [row for row in seed_rows() if row["is_passed"]])
    found = loaded(path, prompt_column="question", id_column="question_id", columns={"solution": "response"})
    assert [(p.id, p.solution) for p in found] == [
        ("seed_1", "<think>long</think> 1"),
        ("seed_2", "<think>long</think> 3"),
    ]


def test_the_same_rows_have_the_same_hash_wherever_they_lie(tmp_path: Path) -> None:
    rows, settings = seed_rows(), {"prompt_column": "question", "columns": {"starter_code": "starter_code"}}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "seed.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    jsonl(folder / "train.jsonl", rows)
    sources = [jsonl(tmp_path / "seed.jsonl", rows), tmp_path / "seed.parquet", folder]
    tasks = [loaded(source, **settings) for source in sources]
    assert len(tasks[0]) == 5
    assert len({content_input(found) for found in tasks}) == 1


# --- LiveCodeBench ---------------------------------------------------------------------------------


def private(cases: list[dict[str, str]]) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def lcb_row(name: str, date: str, tier: str, cases: list[Any], **other: Any) -> dict[str, Any]:
    kind = "functional" if other else "stdin"
    tests = [{"input": given, "output": printed, "testtype": kind} for given, printed in cases]
    return {
        "question_title": name,
        "question_content": f"Solve {name}.",
        "platform": "leetcode" if other else "atcoder",
        "question_id": name,
        "contest_id": f"contest_{name}",
        "contest_date": date,
        "starter_code": "",
        "difficulty": tier,
        "public_test_cases": json.dumps(tests[:1]),
        "private_test_cases": private(tests[1:]),
        "metadata": "{}",
        **other,
    }


SIGNATURE = "def pairs(self, nums: List[int], k: int) -> List[int]:"


def lcb_rows() -> list[dict[str, Any]]:
    sums = [("1 2\n", "3\n0.50\n"), ("10 -4", "6\n-2.0"), ("0 0\n", "0\n0")]
    method = {
        "starter_code": f"class Solution:\n    {SIGNATURE}\n        ",
        "metadata": json.dumps({"func_name": "pairs"}),
    }
    calls = [("[1, 2, 3]\n2", "[1, 3]"), ("[]\n1", "[]"), ("[5, 5]\n9", "[5, 5]")]
    early, late = "2025-01-31T23:59:59", "2025-06-01T00:00:00"
    return [
        lcb_row("too early", early, "easy", sums),
        lcb_row("abc400_a", "2025-02-01T00:00:00", "easy", sums),
        lcb_row("3801", "2025-05-31T19:30:00", "hard", calls, **method),
        lcb_row("too late", late, "hard", sums),
    ]


PROGRAMS = {
    "a, b = map(int, input().split())\nprint(a + b)\nprint(b / 4 if a == 1 else -2 if a else 0)\n": "passed",
    "import sys\na, b = map(int, sys.stdin.read().split())\nprint(a + b, ' ')\n"
    "print(b / 4 if a == 1 else -2 if a else 0)\nprint()\nsys.exit(0)\n": "passed",
    "a, b = map(int, input().split())\nprint(abs(a) + abs(b))\n": "failed",
    "print(3)\nprint(0.5)\n": "failed",
    "a, b = map(int, input().split())\nprint(a + b)\nprint(1 / a)\n": "failed",
    "while True: pass\n": "timeout",
}
METHODS = {
    f"class Solution:\n    {SIGNATURE}\n        return [n for n in nums if n != k]\n": "passed",
    "class Solution:\n def pairs(self, nums, k):\n  return tuple(n for n in nums if n != k)\n": "passed",
    "class Solution:\n    def pairs(self, nums, k):\n        return nums\n": "failed",
    "class Solution:\n    def other(self, nums, k):\n        return nums\n": "failed",
    "def pairs(nums, k):\n    return [n for n in nums if n != k]\n": "crashed",
}


def test_live_code_bench_is_judged_by_its_public_and_private_tests(tmp_path: Path) -> None:
    program, method = panel_problems(recipe(tmp_path).evaluate, "heldout")
    assert [(p.id, p.tier, p.kind, p.panel) for p in (program, method)] == [
        ("abc400_a", "easy", "stdin", "heldout"),
        ("3801", "hard", "function", "heldout"),
    ]
    assert (len(program.cases), len(method.tests)) == (3, 3)
    assert "standard input" in message(program)
    assert f"    {SIGNATURE}\n```" in message(method)
    assert {code: outcome(program, code) for code in PROGRAMS} == PROGRAMS
    assert {code: outcome(method, code) for code in METHODS} == METHODS


def test_a_pickle_that_could_run_something_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("loaded",)

    row = lcb_rows()[1]
    row["private_test_cases"] = base64.b64encode(zlib.compress(pickle.dumps(Malicious()))).decode()
    settings = yaml.safe_load(RECIPE)["evaluate"]["sources"]["heldout"]
    path = jsonl(tmp_path / "bad.jsonl", [row])
    with pytest.raises(ConfigError, match=r"bad\.jsonl line 1 has tests in a pickle .* never loaded"):
        load_tasks(DataConfig.model_validate({**settings, "source": str(path)}), "heldout", "panel")
    assert "loaded" not in capsys.readouterr().out


# --- HumanEval, MBPP, APPS, GSM8K -------------------------------------------------------------------


def test_human_eval_as_a_file_is_human_eval(tmp_path: Path) -> None:
    builtin = load_panel("report")[:3]
    rows = [
        {"task_id": p.id, "prompt": p.prompt, "entry_point": p.entry_point, "test": p.check} for p in builtin
    ]
    path = jsonl(tmp_path / "HumanEval.jsonl", rows)
    columns = {"tests": "test", "entry_point": "entry_point"}
    found = loaded(path, id_column="task_id", columns=columns, checker="python")
    assert [message(p) for p in found] == [message(p) for p in builtin]
    for mine, theirs in zip(found, builtin, strict=True):
        assert (mine.check, mine.preamble) == (theirs.check, theirs.preamble)
        assert outcome(mine, theirs.solution) == "passed"
        assert outcome(mine, f"def {mine.entry_point}(*_):\n    return ...\n") == "failed"
    # As prompts alone they are shown as code too.
    prompts = loaded(path, id_column="task_id", columns={"entry_point": "entry_point"})
    assert [message(p) for p in prompts] == [message(p) for p in builtin]


def test_mbpp_tells_the_name_that_its_tests_call(tmp_path: Path) -> None:
    row = {
        "task_id": 11,
        "text": "Write a function to drop the first and last x of a text.",
        "code": "def drop_x(s):\n    return s.replace('x', '', 1)[::-1].replace('x', '', 1)[::-1]\n",
        "test_list": ['assert drop_x("axbxcx") == "abxc"', 'assert len(drop_x("xx")) == 0'],
        "test_setup_code": "",
    }
    path = jsonl(tmp_path / "mbpp.jsonl", [row])
    columns = {"tests": ["test_setup_code", "test_list"], "solution": "code"}
    settings = {"prompt_column": "text", "id_column": "task_id", "columns": columns, "checker": "python"}
    (found,) = loaded(path, **settings)
    assert (found.kind, found.entry_point, found.id) == ("check", "drop_x", "11")
    assert "Name the function `drop_x`." in message(found)
    assert outcome(found, found.solution) == "passed"
    assert outcome(found, "def drop_x(s):\n    return s\n") == "failed"
    (plain,) = loaded(path, template="plain", **settings)
    assert message(plain) == row["text"]


def test_apps_has_programs_and_functions_and_rows_without_tests(tmp_path: Path) -> None:
    rows = [
        {"problem_id": 0, "question": "Echo.", "input_output": '{"inputs": ["1\\n"], "outputs": ["1\\n"]}'},
        {
            "problem_id": 1,
            "question": "Double it.",
            "starter_code": "def twice(n):\n\t",
            "input_output": '{"fn_name": "twice", "inputs": [[2], [0]], "outputs": [[4], [0]]}',
        },
        {"problem_id": 2, "question": "No tests.", "input_output": ""},
        {"problem_id": 3, "question": "None either.", "input_output": '{"inputs": [], "outputs": []}'},
    ]
    path = jsonl(tmp_path / "apps.jsonl", rows)
    columns = {"tests": "input_output", "starter_code": "starter_code"}
    program, double = loaded(
        path, prompt_column="question", id_column="problem_id", columns=columns, checker="stdin"
    )
    assert [outcome(program, code) for code in ("print(input())", "print(2)")] == ["passed", "failed"]
    right, wrong = "def twice(n):\n    return n + n\n", "def twice(n):\n    return 4\n"
    assert [outcome(double, code) for code in (right, wrong)] == ["passed", "failed"]
    texts = [fenced(code) for code in (right, wrong, "def twice(n):\n    return n[0]\n")]
    rows_ran = [sample(text, prompt_id="1", sample_index=i) for i, text in enumerate(texts)]
    ran = running(rows_ran, {"1": double}, limits=LIMITS, workers=2)
    assert ran == {("1", 0), ("1", 1)}


def test_exact_answers_are_the_last_number(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "gsm.jsonl", [{"question": "2 times 700?", "answer": "It is 2.\n#### 1,400"}])
    settings = {"prompt_column": "question", "columns": {"tests": "answer"}, "checker": "exact"}
    (found,) = loaded(path, **settings)
    assert [outcome(found, number) for number in ("1400", "1,400.0", "2")] == ["passed", "passed", "failed"]
    assert "number" in message(found)
    (plain,) = loaded(path, template="plain", **settings)
    assert message(plain) == "2 times 700?"


# --- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "condition", "kept"),
    [
        (True, True, True),
        (None, True, False),
        ("easy", ("easy", "medium"), True),
        ("hard", ("easy", "medium"), False),
        (["a"], "a", False),
        ("2025-02-01T00:00:00", Range(min="2025-02", max="2025-05"), True),
        ("2025-05-31T23:59:59", Range(min="2025-02", max="2025-05"), True),
        ("2025-06-01", Range(min="2025-02", max="2025-05"), False),
        ("2025-01-31", Range(min="2025-02"), False),
        ("2025", Range(max="2025-05"), True),
        (datetime.datetime(2025, 5, 31, 12), Range(max="2025-05"), True),
        (datetime.date(2025, 6, 1), Range(max="2025-05"), False),
        (3, Range(min=3, max=3), True),
        (3.5, Range(max=3), False),
        (None, Range(max=3), False),
    ],
)
def test_which_values_meet_a_condition(value: Any, condition: Any, kept: bool) -> None:
    assert matches(value, condition) is kept


@pytest.mark.parametrize(("value", "bound"), [("3", 3), (3, "3"), ([3], 3), ([3], "3")])
def test_values_that_do_not_compare_are_refused(value: Any, bound: Any) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        matches(value, Range(min=bound))


def test_a_dotted_name_looks_into_a_column() -> None:
    row = {"meta": '{"f": {"g": 1}, "h": null}', "plain": {"f": 2}, "a.b": 3, "none": None, "n": 5}
    names = ["meta.f.g", "meta.h.i", "meta.x", "plain.f", "a.b", "none.f", "n.f", "gone.f"]
    assert [value_in(row, name) for name in names] == [1, None, None, 2, 3, None, None, None]
    with pytest.raises(ValueError, match="'bad' that is not JSON"):
        value_in({"bad": "{"}, "bad.x")


def test_a_limit_spreads_and_a_seed_draws() -> None:
    problems = [function(f"f{i}", tier="easy" if i < 20 else "hard") for i in range(40)]
    spread, drawn = select(problems, 10, None), select(problems, 10, 7)
    assert len(spread) == len(drawn) == 10
    assert sum(p.tier == "easy" for p in spread) == 5
    assert drawn == select(problems, 10, 7) != select(problems, 10, 8)
    assert [problems.index(p) for p in drawn] == sorted(problems.index(p) for p in drawn)
    assert select(problems, 99, 7) == select(problems, None, 7) == tuple(problems)


def test_a_limit_of_a_source_is_said_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = jsonl(tmp_path / "many.jsonl", [{"prompt": f"Task {i}"} for i in range(30)])
    assert len(loaded(path, limit=4, seed=1)) == 4
    assert "30 kept" in (said := capsys.readouterr().err)
    assert "4 of them used" in said
    assert content_hash(loaded(path, limit=4, seed=1)) == content_hash(loaded(path, limit=4, seed=1))
    assert capsys.readouterr().err == ""  # read once per process


def test_the_first_of_equal_rows_counts(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "prompt": "Do  it.", "code": ""},
        {"id": 2, "prompt": " Do\nit. ", "code": None},
        {"id": 1, "prompt": "Do it."},
        {"id": 3, "prompt": "Do it.", "code": "def it():"},
    ]
    found = loaded(jsonl(tmp_path / "rows.jsonl", rows), columns={"starter_code": "code"})
    assert [(p.id, p.prompt) for p in found] == [("1", "Do  it."), ("3", "Do it.")]


GOOD = {"id": "a", "prompt": "Do it.", "tests": ["assert f(1)"], "day": "2025-01-01", "n": 1}


@pytest.mark.parametrize(
    ("row", "settings", "said"),
    [
        (
            {**GOOD, "id": "b"},
            {"prompt_column": "text"},
            r"line 1 has no columns 'text' and 'id' \(it has id",
        ),
        ({**GOOD, "id": "b"}, {"id_column": "name"}, "line 1 has no columns 'prompt' and 'name'"),
        ({**GOOD, "id": "", "prompt": "Other."}, {}, "line 2 has an empty id"),
        ({**GOOD, "prompt": "Other."}, {}, "line 2 repeats the id 'a'; ids must differ"),
        ({**GOOD, "id": "b"}, {"columns": {"tier": "level"}}, "ood.columns.tier = 'level' is no column of"),
        ({**GOOD, "id": "b"}, {"where": {"level": 1}}, "ood.where.level = 'level' is no column of"),
        ({**GOOD, "id": "b"}, {"where": {"day": "2026"}}, r"meets .*ood\.where; in its first row 'day' is"),
        ({**GOOD, "id": "b", "n": "x"}, {"where": {"n": {"min": 1}}}, "line 2 holds 'x', which cannot be"),
        ({**GOOD, "id": "b"}, {"columns": {"tier": "day.x"}}, "line 1 has text in column 'day' that is not"),
    ],
)
def test_a_row_or_setting_that_is_wrong_is_named(
    tmp_path: Path, row: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [GOOD, row])
    with pytest.raises(ConfigError, match=said) as caught:
        load_tasks(
            DataConfig.model_validate({"source": str(path), **settings}), "ood", "evaluate.sources.ood"
        )
    assert "evaluate.sources.ood" in str(caught.value)
    assert len(str(caught.value)) <= 400


def test_a_panel_without_any_tests_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{**GOOD, "tests": None}])
    with pytest.raises(ConfigError, match=r"no row of .* has tests in tests; check x\.columns\.tests"):
        loaded(path, "x", columns={"tests": "tests"}, checker="python")


def test_a_torn_last_line_is_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [GOOD])
    path.write_text(path.read_text() + '{"id": "b", "pro')
    with pytest.raises(ConfigError, match=r"rows\.jsonl line 2 is not JSON"):
        loaded(path)


@pytest.mark.parametrize(
    "settings",
    [
        {"checker": "stdin"},
        {"columns": {"tier": ["a", "b"]}},
        {"where": {"day": {}}},
        {"where": {"day": {"min": 1, "max": "2025"}}},
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"columns\.tests|several columns|min, max|both be"):
        DataConfig.model_validate({"source": "rows.jsonl", **settings})


def test_bare_dates_in_yaml_are_text() -> None:
    where = yaml.safe_load("{day: {min: 2025-02-01}, one: 2025-02-03, some: [2025-02-03, b], month: 2025-02}")
    config = DataConfig.model_validate({"source": "rows.jsonl", "where": where})
    assert config.where == {
        "day": Range(min="2025-02-01"),
        "one": "2025-02-03",
        "some": ("2025-02-03", "b"),
        "month": "2025-02",
    }
    assert DataConfig.model_validate_json(config.model_dump_json()) == config
