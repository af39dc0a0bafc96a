"""Tasks to prompts: one function renders for sampling, training and evaluation alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_loop.config import DataConfig
from ssd_loop.errors import ConfigError
from ssd_loop.problems import Problem, content_hash, load_panel, thin
from ssd_loop.store import Input, sha256_json

# Some templates print today's date (Llama 3); a fixed one keeps prompts equal from day to day.
PINNED_DATE = "01 Jan 2026"

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


@dataclass(frozen=True)
class Renderer:
    """Turns a task into token ids with the model's own chat template.

    Attributes:
        tokenizer: The model's tokenizer.
        system_prompt: System message, or None for what the template puts there itself.
    """

    tokenizer: Any
    system_prompt: str | None = None

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        """The rendered prompt, ready for the model's turn."""
        encoded = self.tokenizer.apply_chat_template(
            self._messages(message(problem)),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            date_string=PINNED_DATE,
            strftime_now=lambda _format: PINNED_DATE,
        )
        return tuple(encoded["input_ids"])

    def text(self, token_ids: Sequence[int], stop_token_ids: Sequence[int]) -> str:
        """A completion as text, without the stop token that ended it."""
        ended = bool(token_ids) and token_ids[-1] in stop_token_ids
        kept = token_ids[:-1] if ended else token_ids
        text: str = self.tokenizer.decode(list(kept), skip_special_tokens=False)
        return text

    def template_sha256(self) -> str:
        """Hash of the chat template and what it is given besides the task."""
        template = self.tokenizer.get_chat_template()
        return sha256_json([template, self.system_prompt, PINNED_DATE])

    def _messages(self, content: str) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": content}]


def message(problem: Problem) -> str:
    """What the user turn says."""
    if problem.kind == "check" or (problem.kind == "function" and not problem.source):
        return FUNCTION_MESSAGE.format(prompt=problem.prompt)
    if problem.kind == "shell":
        return SHELL_MESSAGE.format(prompt=problem.prompt.strip())
    if problem.kind == "exact":
        return EXACT_MESSAGE.format(prompt=problem.prompt.strip())
    return problem.prompt


def content_input(problems: Sequence[Problem]) -> Input:
    """How manifests name a set of tasks: their content and the wording around them.

    The chat template is not in it: it is a file of the base model, which every manifest names.
    """
    wording = [FUNCTION_MESSAGE, SHELL_MESSAGE, EXACT_MESSAGE, PINNED_DATE]
    return Input(sha256_json([content_hash(problems), wording]))


def load_prompts(config: DataConfig) -> tuple[Problem, ...]:
    """The training prompts in the order they are sampled.

    Raises:
        ConfigError: the source cannot be read, or has no such column.
    """
    if config.source == "builtin":
        return thin(load_panel("train"), config.limit or BUILT_IN_PROMPTS)
    return thin(_from_jsonl(config), config.limit)


def _from_jsonl(config: DataConfig) -> tuple[Problem, ...]:
    path = Path(config.source)
    if path.suffix != ".jsonl" or not path.is_file():
        raise ConfigError(
            f"prompts.source = {config.source!r} is neither 'builtin' nor an existing .jsonl file"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    seen: dict[str, Problem] = {}
    # Not splitlines: JSON strings may hold U+2028 and other separators as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        prompt = _jsonl_row(config, line, f"{path} line {number}")
        if prompt.id in seen:
            raise ConfigError(f"{path} line {number} repeats the id {prompt.id!r}; ids must differ")
        seen[prompt.id] = prompt
    if not seen:
        raise ConfigError(f"{path} holds no prompts")
    return tuple(seen.values())


def _jsonl_row(config: DataConfig, line: str, where: str) -> Problem:
    try:
        row = json.loads(line)
        text, name = row[config.prompt_column], str(row[config.id_column])
    except ValueError:
        raise ConfigError(f"{where} is not JSON; one object a line is expected") from None
    except (KeyError, TypeError):
        raise ConfigError(
            f"{where} has no columns {config.prompt_column!r} and {config.id_column!r}; "
            "set prompts.prompt_column and prompts.id_column"
        ) from None
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{where} has an empty prompt")
    return Problem(panel="train", id=name, kind="text", prompt=text)
