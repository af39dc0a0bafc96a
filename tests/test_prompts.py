"""Tasks become prompts in one way, and prompt files say where they are wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from ssd_loop import prompts
from ssd_loop.config import DataConfig
from ssd_loop.errors import ConfigError
from ssd_loop.problems import Problem, load_panel
from ssd_loop.prompts import (
    PINNED_DATE,
    Renderer,
    content_input,
    load_prompts,
    longest_variants,
    message,
    varied,
)
from tests import tiny
from tests.rows import function


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.build_tokenizer()


def problem(kind: str, prompt: str, **other: str) -> Problem:
    return Problem(panel="train", id="p", kind=kind, prompt=prompt, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["function", "check"])
def test_a_function_task_shows_its_code_in_a_block(kind: str) -> None:
    said = message(problem(kind, "def f(x):\n    '''Double.'''\n"))
    assert "```python\ndef f(x):\n    '''Double.'''\n```" in said
    assert said != said.replace("function", "")


def test_the_other_kinds_say_what_the_answer_looks_like() -> None:
    assert "```sh" in message(problem("shell", "Count the lines.\n"))
    assert message(problem("exact", "What is 2 + 3?\n")).startswith("What is 2 + 3?\n\n")
    assert "number" in message(problem("exact", "What is 2 + 3?"))


@pytest.mark.parametrize("kind", ["text", "function"])
def test_a_task_in_words_is_said_as_it_stands(kind: str) -> None:
    assert message(problem(kind, "Repair {this}:\n", source="x = 1")) == "Repair {this}:\n"


def test_a_template_words_the_task_whatever_its_kind() -> None:
    task = {"prompt": "Add {them}.\n", "starter_code": "def add(a, b):\n    ", "entry_point": "add"}
    starter = message(problem("text", template="function", **task))
    assert starter.startswith("Add {them}.\n\nComplete the code")
    assert starter.endswith("```python\ndef add(a, b):\n```")
    named = message(problem("check", template="function", **{**task, "starter_code": ""}))
    assert "Name the function `add`." in named
    assert "```" not in named
    unnamed = message(problem("text", template="function", prompt="Add {them}."))
    assert unnamed == named.replace("Name the function `add`. ", "")
    program = message(problem("stdin", template="stdin", **task))
    assert program.startswith("Add {them}.\n\n")
    assert "standard input" in program
    assert message(problem("exact", template="plain", **task)) == "Add {them}.\n"


def test_code_that_ends_without_a_line_end_is_closed_by_a_fence_on_its_own_line() -> None:
    assert message(problem("check", "def f(x):\n    '''Up.'''")).endswith("    '''Up.'''\n```")


def test_braces_in_a_task_are_kept() -> None:
    assert "return {'a': {x}}" in message(problem("function", "def f(x):\n    return {'a': {x}}\n"))


def test_the_rendered_prompt_ends_where_the_model_begins(tokenizer: PreTrainedTokenizerFast) -> None:
    task = problem("text", "Say hi. Ünïcode\n  kept")
    ids = Renderer(tokenizer).prompt_ids(task)
    expected = f"<|im_start|>user\n{task.prompt}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(list(ids)) == expected
    assert all(isinstance(token, int) for token in ids)


def test_a_system_prompt_comes_first_and_none_adds_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    task = problem("text", "Hi")
    with_system = tokenizer.decode(list(Renderer(tokenizer, "Be brief.").prompt_ids(task)))
    assert with_system.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi")
    assert "system" not in tokenizer.decode(list(Renderer(tokenizer).prompt_ids(task)))


@pytest.mark.parametrize(
    "template",
    [
        "{{ date_string }}{{ messages[0]['content'] }}",
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ date_string }}{{ messages[0]['content'] }}",
        "{{ strftime_now('%d %b %Y') }}{{ messages[0]['content'] }}",
    ],
    ids=["asked for", "llama 3", "gpt-oss"],
)
def test_a_date_in_the_template_is_pinned(template: str) -> None:
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = template
    ids = Renderer(tokenizer).prompt_ids(problem("text", "Hi"))
    assert tokenizer.decode(list(ids)) == f"{PINNED_DATE}Hi"


def test_the_text_leaves_out_only_the_stop_token_that_ended_it(tokenizer: PreTrainedTokenizerFast) -> None:
    renderer = Renderer(tokenizer)
    end, other = (tokenizer.convert_tokens_to_ids(token) for token in tiny.STOP_TOKENS)
    words = tuple(tokenizer("x = 1\n")["input_ids"])
    assert renderer.text((*words, end), (end, other)) == "x = 1\n"
    assert renderer.text((*words, other), (end, other)) == "x = 1\n"
    assert renderer.text(words, (end, other)) == "x = 1\n"
    assert renderer.text((*words, end), (other,)) == "x = 1\n<|im_end|>"
    assert renderer.text((end,), (end,)) == ""
    assert renderer.text((), (end,)) == ""


def test_the_template_hash_depends_on_template_and_system_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    other = tiny.build_tokenizer()
    other.chat_template = tiny.CHAT_TEMPLATE + "\n"
    hashes = [Renderer(tokenizer), Renderer(tokenizer, "Be brief."), Renderer(other)]
    assert len({renderer.template_sha256() for renderer in hashes}) == 3
    assert Renderer(tiny.build_tokenizer()).template_sha256() == hashes[0].template_sha256()


def test_prompt_inputs_are_named_by_content() -> None:
    one = [function("f"), function("g")]
    assert content_input(one) == content_input([function("f"), function("g")])
    assert content_input(one) != content_input(one[::-1])
    assert content_input(one) != content_input([function("f"), function("g", tests=(("g(1)", "1"),))])


@pytest.mark.parametrize(
    ("panel", "fingerprint"),
    [
        ("train", "a9f51d6de3abc955857a95a46da8d25b5153209f8c2ac2ad95cf9d1c576d083f"),
        ("probe", "667ddb096cc158a8eb351f70dd71342ffe4fa60d80e76802dc3b62e8efce883d"),
        ("heldout", "430ce8d61499621e8f13874a356021d1512bd8a70726fee4deac68335688506c"),
        ("ood", "052a157a64be484c33456f7defdc60f1b9bae2547b0ad02b1af3aa118cc5812a"),
        ("report", "773c9782914152809e38e7898dab018d65446a8897c4522895233cb8fe7f486a"),
    ],
)
def test_the_built_in_panels_keep_their_fingerprints(panel: str, fingerprint: str) -> None:
    """A change makes every finished run stale: only with a decision record."""
    assert content_input(load_panel(panel)).fingerprint == fingerprint


def test_the_words_around_a_task_are_in_its_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    templates = ["", "function", "stdin", "plain"]
    tasks = {template: [problem("text", "Do it.", template=template)] for template in templates}
    before = {template: content_input(tasks[template]) for template in templates}
    assert len(set(before.values())) == 4
    monkeypatch.setitem(prompts.WORDING, "stdin", ("Other words.",))
    changed = [template for template in templates if content_input(tasks[template]) != before[template]]
    assert changed == ["stdin"]


def written(folder: Path, text: str | bytes) -> DataConfig:
    path = folder / "mine.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return DataConfig(source=str(path))


def test_variants_change_words_around_a_task_and_are_drawn_anew_in_every_round() -> None:
    problems = load_panel("train")[:60]
    first = varied(problems, 7, 1)
    assert first == varied(problems, 7, 1)
    assert len({first, varied(problems, 7, 2), varied(problems, 8, 1)}) == 3
    assert len({problem.framing for problem in first}) > 20
    assert [replace(problem, framing=()) for problem in first] == list(problems)
    for problem, plain, most in zip(first, problems, longest_variants(problems), strict=True):
        opening, closing = problem.framing
        assert message(problem) == opening + message(plain) + closing
        assert len(message(plain)) <= len(message(problem)) <= len(message(most))
    assert content_input(first) != content_input(problems)


def test_a_jsonl_file_gives_its_prompts_in_order(tmp_path: Path) -> None:
    rows = [{"id": "b", "prompt": "Two"}, {"id": 7, "prompt": " One\n", "more": None}]
    config = written(tmp_path, "\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert load_prompts(config) == (
        Problem(panel="train", id="b", kind="text", prompt="Two"),
        Problem(panel="train", id="7", kind="text", prompt=" One\n"),
    )
    assert len(load_prompts(config.model_copy(update={"limit": 1}))) == 1


def test_columns_can_be_named(tmp_path: Path) -> None:
    config = written(tmp_path, '{"task_id": 1, "question": "Why?"}')
    config = config.model_copy(update={"prompt_column": "question", "id_column": "task_id"})
    assert load_prompts(config)[0].prompt == "Why?"


def test_line_separators_inside_a_prompt_do_not_end_the_line(tmp_path: Path) -> None:
    prompt = "one\u2028two\x85three\x0bfour"
    config = written(tmp_path, json.dumps({"id": 1, "prompt": prompt}, ensure_ascii=False))
    assert load_prompts(config)[0].prompt == prompt


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("{nope", "line 2 is not JSON"),
        ('{"id": 2}', "line 2 has no columns 'prompt' and 'id'"),
        ('{"prompt": "x"}', "line 2 has no columns"),
        ("[1, 2]", "line 2 has no columns"),
        ("3", "line 2 has no columns"),
        ('{"id": 2, "prompt": "  "}', "line 2 has an empty prompt"),
        ('{"id": 2, "prompt": 5}', "line 2 has an empty prompt"),
        ('{"id": 2, "prompt": null}', "line 2 has an empty prompt"),
        ('{"id": 1, "prompt": "again"}', "line 2 repeats the id '1'"),
        ('{"id": null, "prompt": "again"}', "line 2 has an empty id"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path: Path, second: str, said: str) -> None:
    config = written(tmp_path, '{"id": 1, "prompt": "fine"}\n' + second + "\n")
    with pytest.raises(ConfigError) as caught:
        load_prompts(config)
    assert said in str(caught.value)
    assert "mine.jsonl" in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.jsonl"):
        load_prompts(written(tmp_path, b'{"id": 1, "prompt": "\xff\xfe"}\n'))


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no prompts"):
        load_prompts(written(tmp_path, "\n \n"))


@pytest.mark.parametrize("source", ["nowhere.jsonl", "builtins", "."])
def test_an_unknown_source_is_refused_by_value(source: str) -> None:
    with pytest.raises(ConfigError, match=r"prompts\.source") as caught:
        load_prompts(DataConfig(source=source))
    assert repr(source) in str(caught.value)


def test_the_built_in_prompts_are_the_train_panel() -> None:
    assert load_prompts(DataConfig(limit=1000)) == load_panel("train")
    assert len(load_prompts(DataConfig())) == 120
    few = load_prompts(DataConfig(limit=3))
    assert [prompt for prompt in load_panel("train") if prompt in few] == list(few)
    assert len({prompt.tier for prompt in few}) == 3


def test_a_seed_draws_the_built_in_prompts() -> None:
    drawn = load_prompts(DataConfig(limit=5, seed=1))
    assert len(drawn) == 5
    assert drawn == load_prompts(DataConfig(limit=5, seed=1)) != load_prompts(DataConfig(limit=5))
