"""Published chat templates, thinking ones included: how prompts end, and what is trained and read as code.

TRL carries the templates as files. Qwen3-Thinking-2507's is not among them; Qwen3.5's also opens the
thinking part in the prompt, with the same text.
"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from ssd_loop import evaluation, finals, models, sampling
from ssd_loop.config import ModelConfig, RunConfig
from ssd_loop.durable import sha256_json
from ssd_loop.errors import ConfigError
from ssd_loop.problems import Problem
from ssd_loop.programs import extract_code
from ssd_loop.prompts import PINNED_DATE, PINNED_DAY, Renderer
from ssd_loop.sampling import Decoding, Drawing
from ssd_loop.training_rows import IGNORED, TrainingRow, example
from ssd_loop.workbench import Workbench
from tests import tiny

QWEN_STOPS = ("<|endoftext|>", "<|im_end|>")
LLAMA_STOPS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
GPT_OSS_STOPS = ("<|return|>", "<|endoftext|>", "<|call|>")
DEEPSEEK_STOPS = ("<｜end▁of▁sentence｜>",)  # noqa: RUF001  # the model's own characters

# What the tokenizers of these models know as one token; Qwen3's thinking marks are added, but not special.
SPECIAL = {
    "qwen3": (*QWEN_STOPS, "<|im_start|>"),
    "llama3": (*LLAMA_STOPS, "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    "gptoss": (*GPT_OSS_STOPS, "<|start|>", "<|message|>", "<|channel|>", "<|end|>"),
    "deepseek": (*DEEPSEEK_STOPS, "<｜Assistant｜>", "<｜User｜>"),  # noqa: RUF001
}
STOPS = {
    "qwen3": QWEN_STOPS,
    "llama3": LLAMA_STOPS,
    "gptoss": GPT_OSS_STOPS,
    "deepseek": DEEPSEEK_STOPS,
}
TASK = Problem(panel="train", id="p", kind="text", prompt="Print 3.")
CODE = "x = 3\nprint(x)\n"
ANSWER = f"```python\n{CODE}```"
FINAL = "<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>"


def renderer(template: str, **settings: Any) -> Renderer:
    """A byte-level tokenizer that speaks the published template."""
    tokenizer = tiny.build_tokenizer()
    family = family_of(template)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[family])})
    tokenizer.add_tokens(["<think>", "</think>"])
    if family == "llama3":
        tokenizer.bos_token = "<|begin_of_text|>"
    text = resources.files("trl").joinpath("chat_templates", f"{template}.jinja").read_text(encoding="utf-8")
    tokenizer.chat_template = text
    return Renderer(tokenizer, template_settings=settings)


def family_of(template: str) -> str:
    return next(name for name in SPECIAL if template.startswith(name))


def stops(speaker: Renderer, template: str) -> tuple[int, ...]:
    return tuple(speaker.tokenizer.convert_tokens_to_ids(list(STOPS[family_of(template)])))


def prompt(template: str, **settings: Any) -> str:
    speaker = renderer(template, **settings)
    text: str = speaker.tokenizer.decode(list(speaker.prompt_ids(TASK)))
    return text


CHATML = "<|im_start|>user\nPrint 3.<|im_end|>\n<|im_start|>assistant\n"
NO_THOUGHT = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("template", "settings", "text"),
    [
        ("qwen3", {}, CHATML),
        ("qwen3", {"enable_thinking": True}, CHATML),
        ("qwen3", {"enable_thinking": False}, CHATML + NO_THOUGHT),
        ("qwen3_instruct_2507", {}, CHATML),
        ("qwen3_5_think", {}, CHATML + "<think>\n"),
        ("qwen3_5_think", {"enable_thinking": True}, CHATML + "<think>\n"),
        ("qwen3_5_think", {"enable_thinking": False}, CHATML + NO_THOUGHT),
        (
            "llama3",
            {},
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nPrint 3.<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        *(
            (
                name,
                {},
                "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
                "Cutting Knowledge Date: December 2023\nToday Date: 01 Jan 2026\n\n<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nPrint 3.<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n",
            )
            for name in ("llama3_1", "llama3_2")
        ),
        (
            "gptoss",
            {"reasoning_effort": "high"},
            "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
            "Knowledge cutoff: 2024-06\nCurrent date: 2026-01-01\n\nReasoning: high\n\n"
            "# Valid channels: analysis, commentary, final. Channel must be included for every message."
            "<|end|><|start|>user<|message|>Print 3.<|end|><|start|>assistant",
        ),
    ],
)
def test_the_prompt_is_the_published_one(template: str, settings: dict[str, Any], text: str) -> None:
    assert prompt(template, **settings) == text


def test_what_is_not_set_is_left_to_the_template() -> None:
    assert "Reasoning: medium" in prompt("gptoss")
    assert "Reasoning: low" in prompt("gptoss", reasoning_effort="low")


@pytest.mark.parametrize("template", ["llama3_1", "llama3_2", "gptoss"])
def test_a_prompt_is_the_same_on_any_day(template: str) -> None:
    written = prompt(template)
    today = datetime.now(UTC)
    for form in ("%d %b %Y", "%Y-%m-%d"):
        assert today.strftime(form) not in written
    assert PINNED_DATE in written or PINNED_DAY.strftime("%Y-%m-%d") in written
    assert "26 Jul 2024" not in written  # what Llama falls back to


def test_the_pinned_day_and_its_date_are_one() -> None:
    assert PINNED_DAY.strftime("%d %b %Y") == PINNED_DATE


THOUGHT = "Maybe:\n```python\nwrong = 1\n```\nNo.\n"
COMPLETIONS = [
    ("qwen3", f"<think>\n{THOUGHT}</think>\n\n{ANSWER}<|im_end|>"),
    ("qwen3_instruct_2507", f"{ANSWER}<|im_end|>"),
    ("qwen3_5_think", f"{THOUGHT}</think>\n\n{ANSWER}<|im_end|>"),
    ("gptoss", f"{ANALYSIS}{THOUGHT}<|end|><|start|>assistant{FINAL}{ANSWER}<|return|>"),
    ("llama3_1", f"{ANSWER}<|eot_id|>"),
]


@pytest.mark.parametrize(("template", "completion"), COMPLETIONS)
def test_thinking_is_trained_as_it_was_sampled(template: str, completion: str) -> None:
    speaker = renderer(template)
    asked = speaker.prompt_ids(TASK)
    drawn = tuple(speaker.tokenizer(completion, add_special_tokens=False)["input_ids"])
    row = example(TrainingRow(asked, drawn))
    assert row["input_ids"] == [*asked, *drawn]
    assert row["labels"] == [IGNORED] * len(asked) + list(drawn)
    learnt = [label for label in row["labels"] if label != IGNORED]
    assert speaker.tokenizer.decode(learnt) == completion


@pytest.mark.parametrize(("template", "completion"), COMPLETIONS)
def test_code_is_read_from_the_answer_and_never_from_a_cut_thought(template: str, completion: str) -> None:
    speaker = renderer(template)
    drawn = speaker.tokenizer(completion, add_special_tokens=False)["input_ids"]
    assert extract_code(speaker.text(drawn, stops(speaker, template))) == CODE
    if THOUGHT in completion:
        cut = completion[: completion.index(THOUGHT) + len(THOUGHT)]
        drawn = speaker.tokenizer(cut, add_special_tokens=False)["input_ids"]
        assert extract_code(speaker.text(drawn, stops(speaker, template))) is None


def test_the_text_shows_where_the_prompt_opened_thinking() -> None:
    speaker = renderer("qwen3_5_think")
    ends = stops(speaker, "qwen3_5_think")
    words = speaker.tokenizer("Well", add_special_tokens=False)["input_ids"]
    assert speaker.text(words, ends) == "<think>\nWell"
    assert speaker.text([ends[0]], ends) == ""  # an empty answer stays empty
    assert renderer("qwen3_5_think", enable_thinking=False).text(words, ends) == "Well"
    assert renderer("qwen3").text(words, ends) == "Well"


@pytest.mark.parametrize(
    ("template", "settings", "response"),
    [
        ("qwen3_instruct_2507", {}, f"{ANSWER}<|im_end|>"),
        ("qwen3", {}, f"{NO_THOUGHT}{ANSWER}<|im_end|>"),
        ("qwen3", {"enable_thinking": False}, f"{ANSWER}<|im_end|>"),
        ("qwen3_5_think", {}, f"\n</think>\n\n{ANSWER}<|im_end|>"),
        ("qwen3_5_think", {"enable_thinking": False}, f"{ANSWER}<|im_end|>"),
        ("deepseek_r1_distill", {}, f"\n</think>\n\n{ANSWER}<｜end▁of▁sentence｜>"),  # noqa: RUF001
        ("llama3", {}, f"{ANSWER}<|eot_id|>"),
        ("llama3_1", {}, f"{ANSWER}<|eot_id|>"),
        ("gptoss", {}, f"{FINAL}{ANSWER}<|return|>"),
    ],
)
def test_a_human_answer_stands_where_the_model_would_answer(
    template: str, settings: dict[str, Any], response: str
) -> None:
    speaker = renderer(template, **settings)
    ids = speaker.response_ids(ANSWER, stops(speaker, template))
    assert speaker.tokenizer.decode(list(ids)) == response
    written = speaker.tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    assert list(ids[-1 - len(written) : -1]) == written
    assert extract_code(speaker.text(ids, stops(speaker, template))) == CODE


def test_a_template_that_closes_no_answer_takes_the_first_stop_token() -> None:
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    first, second = (tokenizer.convert_tokens_to_ids(token) for token in tiny.STOP_TOKENS)
    assert Renderer(tokenizer).response_ids("Hi", (second, first))[-1] == second
    assert Renderer(tokenizer).response_ids("Hi", (first, second))[-1] == first


def test_template_settings_change_the_hash_and_none_keeps_it() -> None:
    plain, off = renderer("qwen3"), renderer("qwen3", enable_thinking=False)
    hashes = {r.template_sha256() for r in (plain, off, renderer("qwen3", enable_thinking=True))}
    assert len(hashes) == 3
    template = plain.tokenizer.chat_template
    assert plain.template_sha256() == sha256_json([template, None, PINNED_DATE])


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({}, {}),
        ({"enable_thinking": False}, {"enable_thinking": False}),
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high"}),
    ],
)
def test_the_config_hands_on_only_what_is_set(
    settings: dict[str, Any], given: dict[str, Any], tiny_qwen3: Path
) -> None:
    config = RunConfig(model=ModelConfig(name=str(tiny_qwen3), **settings))
    bench = Workbench(config, models.resolve(str(tiny_qwen3), None, "auto"))
    assert bench.renderer.template_settings == given


@pytest.mark.parametrize("template", [template for template, _ in COMPLETIONS])
def test_sampling_and_evaluation_ask_with_the_same_ids(template: str) -> None:
    assert evaluation.plan is sampling.plan
    speaker = renderer(template)
    draws = sampling.plan(
        Drawing(speaker, stops(speaker, template), run_seed=0, shard_size=8),
        [TASK],
        2,
        decoding=Decoding(1.0, 20, 0.8, 16),
        round_index=1,
    )
    assert [draw.request.prompt_token_ids for draw in draws] == [speaker.prompt_ids(TASK)] * 2


@pytest.mark.parametrize(
    "template", ["qwen3", "qwen3_instruct_2507", "qwen3_5_think", "llama3", "llama3_1", "llama3_2", "gptoss"]
)
def test_a_second_turn_shows_the_first_answer_and_asks_to_check_it(template: str) -> None:
    speaker = renderer(template)
    finals.check_template(speaker)
    text = speaker.tokenizer.decode(list(speaker.revision_ids(TASK, "print(3)")))
    first, again = text.index("print(3)"), text.index("Check your answer.")
    assert text.index("Print 3.") < first < again
    generation = prompt(template).rpartition("Print 3.")[2]
    assert text.endswith(generation)


def test_a_template_that_refuses_a_second_turn_is_refused_before_the_run() -> None:
    speaker = renderer("qwen3")
    refusal = "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}"
    speaker.tokenizer.chat_template = refusal + "{{ messages[0]['content'] }}"
    with pytest.raises(ConfigError, match=r"second turn \(one turn only\).*baselines.temperatures"):
        finals.check_template(speaker)
