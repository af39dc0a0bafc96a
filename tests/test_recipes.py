"""Every recipe in configs/ loads, says what it is, and holds the paper's values where it claims them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ssd_loop.config import DataConfig, RunConfig, Section
from ssd_loop.config_file import load, read_yaml
from ssd_loop.prompts import load_prompts, message
from ssd_loop.sources import load_tasks

FOLDER = Path(__file__).resolve().parent.parent / "configs"
CONTROLS = {"self-sft", "one-long-round", "rejection-sampling"}
SMALL = {"default", "quick", "execution-filter", "hot-truncated", "garbage"} | CONTROLS

# arXiv 2604.01193, table 3: T, top-k and top-p of sampling, then of evaluating the trained model; 0 = none.
TABLE_3 = {
    "llama-3.1-8b-instruct": ("meta-llama/Llama-3.1-8B-Instruct", (0.8, 20, 0.8), (0.7, 20, 0.8)),
    "qwen3-4b-instruct": ("Qwen/Qwen3-4B-Instruct-2507", (1.6, 20, 0.8), (1.1, 20, 0.8)),
    "qwen3-4b-thinking": ("Qwen/Qwen3-4B-Thinking-2507", (1.1, 20, 0.95), (0.7, 20, 0.95)),
    "qwen3-30b-a3b-instruct": ("Qwen/Qwen3-30B-A3B-Instruct-2507", (1.6, 20, 0.8), (0.9, 20, 0.8)),
    "qwen3-30b-a3b-thinking": ("Qwen/Qwen3-30B-A3B-Thinking-2507", (1.2, 20, 0.95), (0.7, 20, 0.95)),
    "gpt-oss-20b": ("unsloth/gpt-oss-20b-BF16", (1.2, 0, 1.0), (1.0, 20, 0.95)),
}
# Section 3.1 and appendix C.1: 2,500 or 300 steps of 32 over 10,168 prompts, 250 or 50 of them warming up.
PASSES = {"instruct": (8, 0.1), "thinking": (1, 0.167)}
MIXTURES = {"qwen3-30b-a3b-instruct", "qwen3-30b-a3b-thinking", "gpt-oss-20b"}
# Sections 4.4 and 3.4, and the recipe that circulates: T, top-k, top-p, filters.
OTHERS = {
    "execution-filter": ((0.8, 0, 0.95), ("unparsable", "does_not_run")),
    "hot-truncated": ((2.0, 10, 1.0), ("empty", "stub", "unparsable")),
    "garbage": ((2.0, 0, 1.0), ("empty",)),
}
NAMES = sorted(SMALL | set(TABLE_3))


def recipe(name: str) -> RunConfig:
    return load(FOLDER / f"{name}.yaml", {})


def opening(name: str) -> str:
    """The first comment block as one line of text."""
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    block = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.removeprefix("#").strip() for line in block)


def decoding(section: Section) -> tuple[float, int, float]:
    return section.temperature, section.top_k, section.top_p  # type: ignore[attr-defined]


def test_the_recipes_are_those_and_no_others() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == [f"{name}.yaml" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_opens_with_the_command_that_runs_it(name: str) -> None:
    command = f"python -m ssd_loop --rounds {recipe(name).rounds} --config configs/{name}.yaml"
    assert re.match(rf"{re.escape(command)}( |$)", opening(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_whether_we_ran_it_and_on_what_it_runs(name: str) -> None:
    said = re.findall(r"Run by us in \w+ 20\d\d|Not run by us yet", opening(name))
    assert len(said) == 1
    assert re.search(r"\d CPU core|two CPU cores|GPU of \d+ GB|GPU, \d+ GB", opening(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_value_that_is_not_the_default_says_where_it_comes_from(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    chosen, defaults = recipe(name).model_dump(), RunConfig().model_dump()
    commented = {}
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"(  )?(\w+):", line):
            section = section if found[1] else found[2]
            commented[section, found[2]] = "#" in line
    for section, given in read_yaml(path).items():
        for key in given if isinstance(given, dict) else [section]:
            now = chosen[section][key] if isinstance(given, dict) else chosen[section]
            before = defaults[section][key] if isinstance(given, dict) else defaults[section]
            assert now == before or commented[section, key], f"{section}.{key} = {now} has no comment"


def test_control_arms_differ_from_the_default_in_one_thing() -> None:
    """Otherwise a difference in their results would have more than one cause.

    Of rejection sampling's answers a tenth is trained on: ten passes make as many steps as the default's one.
    """
    default = recipe("default").model_dump(exclude={"rounds"})
    changed = {
        name: {
            f"{section}.{key}": value
            for section, given in recipe(name).model_dump(exclude={"rounds"}).items()
            for key, value in given.items()
            if value != default[section][key]
        }
        for name in CONTROLS
    }
    assert changed == {
        "self-sft": {"sample.top_k": 0, "sample.top_p": 1.0},
        "one-long-round": {"sample.samples_per_prompt": 5},
        "rejection-sampling": {"filter.filters": ("fails_tests",), "train.epochs": 10},
    }


def test_one_long_round_draws_and_trains_as_much_as_the_repeated_rounds() -> None:
    long, repeated = recipe("one-long-round"), recipe("default")
    amounts = [
        c.rounds * c.sample.samples_per_prompt * c.train.epochs / c.train.batch_size for c in (long, repeated)
    ]
    assert amounts[0] == amounts[1]


@pytest.mark.parametrize("name", sorted(TABLE_3))
def test_the_papers_models_are_sampled_as_in_the_paper(name: str) -> None:
    config = recipe(name)
    assert (config.model.name, decoding(config.sample), decoding(config.evaluate)) == TABLE_3[name]
    assert config.sample.samples_per_prompt == 1
    assert config.filter.filters == ("raw",)
    assert config.model.reasoning_effort == ("high" if name == "gpt-oss-20b" else None)


@pytest.mark.parametrize("name", sorted(TABLE_3))
def test_the_papers_models_are_trained_as_far_as_adapters_allow(name: str) -> None:
    train = recipe(name).train
    assert (train.epochs, train.warmup_share) == PASSES["instruct" if "instruct" in name else "thinking"]
    assert train.learning_rate == 10 * 5e-6
    assert train.learning_rate * train.final_lr_share == pytest.approx(10 * 1e-6)
    assert (train.batch_size, train.weight_decay, train.adam_beta2) == (32, 0.1, 0.95)
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert train.target_modules == (attention if name in MIXTURES else "all-linear")


@pytest.mark.parametrize("name", sorted(TABLE_3))
def test_the_papers_models_get_its_prompts_and_its_benchmark(name: str) -> None:
    config = recipe(name)
    assert (config.prompts.source, config.prompts.subset) == ("microsoft/rStar-Coder", "seed_sft")
    assert config.prompts.limit is None
    heldout = config.evaluate.sources["heldout"]
    assert heldout.source.endswith("livecodebench/code_generation_lite/test6.jsonl")
    assert config.evaluate.limit is None
    assert config.evaluate.counts["heldout"] == 10
    assert config.evaluate.pass_at == (1, 5)


QUESTION = {"question_id": "q", "response": "...", "verified": True}
ROWS = [  # columns as in the card of microsoft/rStar-Coder
    {**QUESTION, "question": "Add two.", "starter_code": "def add(a, b):\n    ", "is_passed": True},
    {**QUESTION, "question": "Add  two.", "starter_code": "def add(a, b):\n    ", "is_passed": True},
    {**QUESTION, "question": "Print a sum.", "starter_code": "", "is_passed": True},
    {**QUESTION, "question": "Print a product.", "starter_code": "", "is_passed": False},
]


@pytest.mark.parametrize("name", sorted(TABLE_3))
def test_prompts_are_the_solved_questions_once_each_in_two_wordings(name: str, tmp_path: Path) -> None:
    prompts = load_prompts(moved(recipe(name).prompts, tmp_path, ROWS))
    assert [(p.prompt, p.template) for p in prompts] == [("Add two.", "function"), ("Print a sum.", "stdin")]
    assert "def add(a, b):" in message(prompts[0])
    assert "standard input" in message(prompts[1])


def benchmark_row(number: int, day: str, test_type: str, func_name: str | None) -> dict[str, str]:
    """A row as in LiveCodeBench's files: JSON in three of its columns."""
    given, expected = ("1\n2", "3")
    test = json.dumps([{"input": given, "output": expected, "testtype": test_type}])
    return {
        "question_id": f"abc_{number}",
        "question_content": f"Task {number}",
        "starter_code": "class Solution:\n    def add(self, a, b):\n        " if func_name else "",
        "difficulty": "easy",
        "contest_date": f"{day}T00:00:00",
        "public_test_cases": test,
        "private_test_cases": test,
        "metadata": json.dumps({"func_name": func_name} if func_name else {}),
    }


@pytest.mark.parametrize("name", sorted(TABLE_3))
def test_the_benchmark_is_read_in_its_months_with_all_its_tests(name: str, tmp_path: Path) -> None:
    rows = [
        benchmark_row(1, "2025-01-31", "stdin", None),
        benchmark_row(2, "2025-02-01", "stdin", None),
        benchmark_row(3, "2025-05-31", "functional", "add"),
        benchmark_row(4, "2025-06-01", "stdin", None),
    ]
    source = moved(recipe(name).evaluate.sources["heldout"], tmp_path, rows)
    program, function = load_tasks(source, "heldout", "evaluate.sources.heldout")
    assert (program.id, program.kind, program.tier, program.template) == ("abc_2", "stdin", "easy", "stdin")
    assert [(case.stdin, case.stdout) for case in program.cases] == [("1\n2", "3")] * 2
    assert (function.id, function.kind, function.template) == ("abc_3", "function", "function")
    assert function.tests == (("Solution().add(1, 2)", "3"),) * 2


def moved(source: DataConfig, folder: Path, rows: list[dict[str, Any]]) -> DataConfig:
    """The same source, reading these rows instead."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return source.model_copy(update={"source": str(path), "subset": None})


@pytest.mark.parametrize("name", sorted(TABLE_3))
def test_the_longest_answer_leaves_room_for_a_long_prompt(name: str) -> None:
    config = recipe(name)
    longest = max(config.sample.max_new_tokens, config.evaluate.max_new_tokens)
    assert config.engine.max_model_len - longest >= 8192


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_the_other_recipes_differ_from_the_default_where_they_say(name: str) -> None:
    config, default = recipe(name), recipe("default")
    assert (decoding(config.sample), config.filter.filters) == OTHERS[name]
    assert (config.model, config.train, config.prompts) == (default.model, default.train, default.prompts)


@pytest.mark.parametrize("name", ["execution-filter", "hot-truncated"])
def test_what_circulates_as_the_recipe_says_that_it_is_not_the_papers(name: str) -> None:
    assert re.search(r"not the( headline recipe of the)? paper", opening(name))


def test_the_default_recipe_is_the_defaults() -> None:
    assert recipe("default") == RunConfig()
