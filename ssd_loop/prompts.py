"""Tasks to prompts: one function renders for sampling, training and evaluation alike."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from ssd_loop.config import DataConfig
from ssd_loop.durable import sha256_json
from ssd_loop.problems import Problem, content_hash, load_panel
from ssd_loop.records import derive_seed
from ssd_loop.sources import load_tasks, select
from ssd_loop.store import Input

# Some templates print today's date (Llama 3); a fixed one keeps prompts equal from day to day.
PINNED_DAY = datetime(2026, 1, 1)
PINNED_DATE = "01 Jan 2026"

# The thinking part of Qwen3 and DeepSeek-R1, as their templates write it.
THINKING_OPENS, THINKING_CLOSES = "<think>\n", "\n</think>\n\n"

EXAMPLE_ANSWER = "Done."  # rendered to see what a template writes around an answer

# About 12,000 sampled tokens a round on the default model: a round stays short on two CPU cores.
BUILT_IN_PROMPTS = 120

FUNCTION_MESSAGE = """\
Write the Python function below. Answer with one Python code block that holds the complete function.

```python
{prompt}```"""

SHELL_MESSAGE = """\
{prompt}

Answer with one shell command in a ```sh code block."""

EXACT_MESSAGE = """\
{prompt}

End your answer with the number alone."""

STARTER_MESSAGE = """\
{prompt}

Complete the code below and keep its names. Answer with one Python code block that holds the complete code.

```python
{starter_code}
```"""

TASK_MESSAGE = """\
{prompt}

{named}Answer with one Python code block that holds the complete function."""
NAMED = "Name the function `{entry_point}`. "

STDIN_MESSAGE = """\
{prompt}

Write a complete Python program that reads standard input and prints to standard output. Answer with one \
Python code block that holds the program."""

REVISION_MESSAGE = """\
Check your answer. If something in it is wrong or missing, correct it. Then give the whole final answer \
again, in the same form."""

# What a variant of a prompt opens and closes with: words that change nothing about the task.
OPENINGS = (
    *("", "Here is a task.\n\n", "Task:\n\n", "Please solve this.\n\n", "The next exercise:\n\n"),
    *("A colleague needs help with this.\n\n", "Something to work on:\n\n", "I would like this done.\n\n"),
)
CLOSINGS = ("", "\n\nThank you.", "\n\nTake your time.", "\n\nMind the details.", "\n\nThat is all.")

# Wordings that came after the others: named in manifests where they are used.
WORDING = {"function": (STARTER_MESSAGE, TASK_MESSAGE, NAMED), "stdin": (STDIN_MESSAGE,)}


@dataclass(frozen=True)
class Renderer:
    """Turns a task into token ids with the model's own chat template.

    Attributes:
        tokenizer: The model's tokenizer.
        system_prompt: System message, or None for what the template puts there itself.
        template_settings: What the template is given besides, such as ``enable_thinking``.
    """

    tokenizer: Any
    system_prompt: str | None = None
    template_settings: Mapping[str, Any] = field(default_factory=dict)

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        """The rendered prompt, ready for the model's turn."""
        encoded = self._render(self._messages(message(problem)), add_generation_prompt=True, tokenize=True)
        return tuple(encoded["input_ids"])

    def revision_ids(self, problem: Problem, answer: str) -> tuple[int, ...]:
        """The prompt of a second turn, in which the model may correct its own answer."""
        messages = [
            *self._messages(message(problem)),
            {"role": "assistant", "content": answer},
            {"role": "user", "content": REVISION_MESSAGE},
        ]
        return tuple(self._render(messages, add_generation_prompt=True, tokenize=True)["input_ids"])

    def response_ids(self, text: str, stop_token_ids: Sequence[int]) -> tuple[int, ...]:
        """A human-written answer as the token ids of the model's turn, to follow `prompt_ids`.

        What the template puts between the prompt and an answer without thinking comes first: nothing for
        most models, the end of an opened thinking part, an empty one, or GPT-OSS's final channel. The stop
        token with which the template closes an answer comes last.

        Args:
            text: The answer, which is taken as it stands.
            stop_token_ids: Every token that ends a turn; the first is taken where the template closes with
                none of them.
        """
        before, behind = self._around_an_answer
        closing = [token for token in self._encode(behind) if token in stop_token_ids]
        return (*self._encode(before), *self._encode(text), (closing or stop_token_ids)[0])

    def text(self, token_ids: Sequence[int], stop_token_ids: Sequence[int]) -> str:
        """A completion as text, without the stop token that ended it.

        Where the prompt has opened the thinking part, the text begins with that opening: it alone tells an
        answer from thinking that was cut before its end.
        """
        ended = bool(token_ids) and token_ids[-1] in stop_token_ids
        kept = token_ids[:-1] if ended else token_ids
        text: str = self.tokenizer.decode(list(kept), skip_special_tokens=False)
        return THINKING_OPENS + text if self._opens_thinking and text.strip() else text

    def template_sha256(self) -> str:
        """Hash of the chat template and what it is given besides the task."""
        given = [self.tokenizer.get_chat_template(), self.system_prompt, PINNED_DATE]
        return sha256_json([*given, dict(self.template_settings)] if self.template_settings else given)

    def _messages(self, content: str) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": content}]

    def _render(self, messages: Sequence[Mapping[str, str]], **options: Any) -> Any:
        return self.tokenizer.apply_chat_template(
            messages,
            return_dict=True,
            date_string=PINNED_DATE,
            strftime_now=PINNED_DAY.strftime,
            **options,
            **self.template_settings,
        )

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @cached_property
    def _prompt_example(self) -> str:
        prompt: str = self._render(self._messages("Ready?"), add_generation_prompt=True, tokenize=False)
        return prompt

    @cached_property
    def _opens_thinking(self) -> bool:
        return self._prompt_example.endswith((THINKING_OPENS, THINKING_OPENS.rstrip()))

    @cached_property
    def _finished_example(self) -> str:
        messages = [*self._messages("Ready?"), {"role": "assistant", "content": EXAMPLE_ANSWER}]
        whole: str = self._render(messages, add_generation_prompt=False, tokenize=False)
        return whole

    @cached_property
    def _around_an_answer(self) -> tuple[str, str]:
        """What the template writes between the prompt and an answer, and after the answer."""
        before, _, behind = self._finished_example.rpartition(EXAMPLE_ANSWER)
        if before.startswith(self._prompt_example):
            return before.removeprefix(self._prompt_example), behind
        # Some templates open thinking for the model, but drop it from earlier answers (DeepSeek-R1).
        return (THINKING_CLOSES if self._opens_thinking else ""), behind


def message(problem: Problem) -> str:
    """What the user turn says."""
    opening, closing = problem.framing or ("", "")
    return f"{opening}{_worded(problem)}{closing}"


def varied(problems: Sequence[Problem], seed: int, round_index: int) -> tuple[Problem, ...]:
    """The same tasks with other words around them, drawn anew for every prompt in every round."""
    rng = random.Random(derive_seed(seed, round_index, "variants"))
    return tuple(_framed(problem, rng.choice(OPENINGS), rng.choice(CLOSINGS)) for problem in problems)


def longest_variants(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """The prompts in the longest of their variants."""
    return tuple(_framed(problem, max(OPENINGS, key=len), max(CLOSINGS, key=len)) for problem in problems)


def _framed(problem: Problem, opening: str, closing: str) -> Problem:
    return replace(problem, framing=(opening, closing))


def _worded(problem: Problem) -> str:
    text = problem.prompt.strip()
    if problem.template == "function":
        return _function_message(problem)
    if problem.template == "stdin":
        return STDIN_MESSAGE.format(prompt=text)
    if problem.template == "plain":
        return problem.prompt
    if problem.kind == "check" or (problem.kind == "function" and not problem.source):
        code = problem.prompt if problem.prompt.endswith("\n") else problem.prompt + "\n"
        return FUNCTION_MESSAGE.format(prompt=code)
    if problem.kind == "shell":
        return SHELL_MESSAGE.format(prompt=text)
    if problem.kind == "exact":
        return EXACT_MESSAGE.format(prompt=text)
    return problem.prompt


def _function_message(problem: Problem) -> str:
    text = problem.prompt.strip()
    if problem.starter_code:
        return STARTER_MESSAGE.format(prompt=text, starter_code=problem.starter_code.rstrip())
    named = NAMED.format(entry_point=problem.entry_point) if problem.entry_point else ""
    return TASK_MESSAGE.format(prompt=text, named=named)


def content_input(problems: Sequence[Problem]) -> Input:
    """How manifests name a set of tasks: their content and the wording around them.

    The chat template is not in it: it is a file of the base model, which every manifest names.
    """
    wording = [FUNCTION_MESSAGE, SHELL_MESSAGE, EXACT_MESSAGE, PINNED_DATE]
    for template in sorted({problem.template for problem in problems}):
        wording += WORDING.get(template, ())
    return Input(sha256_json([content_hash(problems), wording]))


def load_prompts(config: DataConfig) -> tuple[Problem, ...]:
    """The training prompts in the order they are sampled.

    Raises:
        ConfigError: the source cannot be read, or has no such column.
        SsdLoopError: the source is on the Hub, which cannot be reached.
    """
    if config.source == "builtin":
        return select(load_panel("train"), config.limit or BUILT_IN_PROMPTS, config.seed)
    return load_tasks(config, "train", "prompts")
