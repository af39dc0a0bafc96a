"""Checks of the tokenizer and its chat template: ends of answers, dates, thinking, lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any

from ssd_loop import models
from ssd_loop.config import ModelConfig
from ssd_loop.doctor.subject import Finding, Longest, Messages, Subject, joined
from ssd_loop.prompts import PINNED_DATE, PINNED_DAY, Renderer

QUESTION, ANSWER = "What is six times seven?", "The answer is 42."
OTHER_DAY = datetime(2001, 2, 3)  # neither the pinned day nor today
DATE_FORMATS = (
    "%d %b %Y",
    "%d %B %Y",
    "%-d %B %Y",
    "%B %-d, %Y",
    "%b %d, %Y",
    "%B %d, %Y",
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d.%m.%Y",
    "%Y%m%d",
)
THINKING_MARKS = ("<think>", "[THINK]", "<|channel|>", "enable_thinking", "reasoning_content")
SWITCHES: dict[str, tuple[Any, Any]] = {"enable_thinking": (True, False), "reasoning_effort": ("low", "high")}


def check_template(subject: Subject) -> Finding:
    """How the template writes a finished answer, compared with what was sampled."""
    renderer, stops = subject.bench.renderer, subject.bench.stop_token_ids
    turn = _messages(renderer)
    answered = [*turn, {"role": "assistant", "content": ANSWER}]
    prompt = rendered_ids(renderer, turn, add_generation_prompt=True)
    is_prefix = rendered_ids(renderer, answered)[: len(prompt)] == prompt
    ending = _behind_the_answer(renderer, answered)
    # Some templates close no last answer (GLM-4): there the next turn's beginning ends it.
    following = _behind_the_answer(renderer, [*answered, *turn[-1:]])[:1]
    return judge_template(is_prefix, ending or following, stops)


def _behind_the_answer(renderer: Renderer, messages: Messages) -> list[tuple[int, str]]:
    """Ids and texts of the tokens after the answer, white space left out."""
    _, answer, behind = rendered(renderer, messages).rpartition(ANSWER)
    tokenizer = renderer.tokenizer
    ids: list[int] = tokenizer(behind, add_special_tokens=False)["input_ids"] if answer else []
    return [(token, text) for token in ids if (text := tokenizer.decode([token])).strip()]


def judge_template(is_prefix: bool, behind: Sequence[tuple[int, str]], stops: Sequence[int]) -> Finding:
    """Whether a model that is trained on sampled ids stays one that this template is right for.

    Args:
        is_prefix: Whether the prompt's ids begin the ids of prompt and answer.
        behind: Ids and texts of the tokens that the template puts after an answer.
        stops: Ids that end sampling.
    """
    ending = next((f"{text!r} ({token})" for token, text in behind if token in stops), None)
    if ending is None:
        seen = f"{behind[0][1]!r} ({behind[0][0]})" if behind else "nothing"
        return Finding(
            "template",
            "fail",
            f"the template puts {seen} after an answer, and none of the stop tokens {joined(stops)}: "
            "answers would run on, or training would teach another end",
            "name the token that ends an answer as eos_token_id in generation_config.json",
        )
    ending = f"an answer ends with {ending}, a stop token"
    if not is_prefix:
        return Finding(
            "template",
            "warn",
            f"{ending}; but the template writes prompt and finished answer otherwise than it writes the "
            "prompt (thinking templates wrap answers anew). Training here is on the ids that were sampled",
            "do not train on these samples elsewhere by rendering them again",
        )
    return Finding("template", "pass", f"{ending}; a prompt stays as it is when it is answered")


def check_stops(subject: Subject) -> Finding:
    """The tokens that end an answer, and the one that pads."""
    tokenizer = subject.bench.renderer.tokenizer
    stops, pad = subject.bench.stop_token_ids, models.pad_token_id(subject.path)
    return judge_stops(
        {token: tokenizer.decode([token]) for token in stops},
        pad=(pad, tokenizer.decode([pad])),
        own_pad=tokenizer.pad_token_id is not None,
        eos=tokenizer.eos_token_id,
        declared=models.read_json(subject.path / models.GENERATION_CONFIG).get("eos_token_id") is not None,
        rows=subject.text_config.vocab_size,
    )


def judge_stops(
    stops: Mapping[int, str],
    *,
    pad: tuple[int, str],
    own_pad: bool,
    eos: int | None,
    declared: bool,
    rows: int,
) -> Finding:
    """Whether the stop tokens exist and agree.

    Args:
        stops: Their ids and texts.
        pad: Id and text of the token that pads.
        own_pad: Whether the tokenizer names it.
        eos: The tokenizer's own end token.
        declared: Whether generation_config.json names the stop tokens.
        rows: Embeddings of the model.
    """
    substitute = "" if own_pad else ", a substitute: the tokenizer names none"
    listed = ", ".join(f"{text!r} ({token})" for token, text in stops.items())
    detail = f"{listed}; padding {pad[1]!r} ({pad[0]}){substitute}"
    beyond = [token for token in (*stops, pad[0]) if token >= rows]
    if beyond:
        return Finding(
            "stop tokens",
            "fail",
            f"{detail}; {joined(beyond)} are beyond the {rows:,} embeddings",
            "correct eos_token_id in generation_config.json, or the tokenizer's pad_token",
        )
    if not declared:
        said = f"{detail}; only the tokenizer names it, generation_config.json does not"
        return Finding("stop tokens", "warn", said, "name every stop token as eos_token_id there")
    if eos is not None and eos not in stops:
        said = f"{detail}; the tokenizer's own end token {eos} is not among them"
        return Finding("stop tokens", "warn", said, "add it to eos_token_id in generation_config.json")
    return Finding("stop tokens", "pass", detail)


def check_date(subject: Subject) -> Finding:
    """Whether prompts change from day to day."""
    renderer = subject.bench.renderer
    turn = _messages(renderer)
    today = date.today()
    pinned = rendered(renderer, turn, add_generation_prompt=True)
    other = rendered(renderer, turn, day=OTHER_DAY, add_generation_prompt=True)
    own = renderer.system_prompt or ""
    found = [text for text in dates(today) if text in other and text not in own]
    return judge_date(changes=pinned != other, found=found)


def dates(day: date) -> list[str]:
    """The day as templates may write it."""
    return [day.strftime(form) for form in DATE_FORMATS]


def judge_date(*, changes: bool, found: Sequence[str]) -> Finding:
    """Whether the same task has the same prompt on any day.

    Args:
        changes: Whether the prompt follows the date that the template is given.
        found: Today's date in a prompt for another day.
    """
    if found:
        return Finding(
            "date",
            "fail",
            f"the template writes today's date, {found[0]}, whatever date it is given: tomorrow's prompts "
            "would be others",
            "take the date out of chat_template.jinja",
        )
    return Finding("date", "pass", f"pinned to {PINNED_DATE}" if changes else "no date in the prompt")


def check_thinking(subject: Subject) -> Finding:
    """What the template does about thinking, and which settings change it."""
    renderer = subject.bench.renderer
    turn = _messages(renderer)
    prompt = rendered(renderer, turn, add_generation_prompt=True)
    changing = {
        name
        for name, (one, other) in SWITCHES.items()
        if _with(renderer, turn, {name: one}) != _with(renderer, turn, {name: other})
    }
    known = any(mark in renderer.tokenizer.get_chat_template() for mark in THINKING_MARKS)
    return judge_thinking(
        prompt.removeprefix(rendered(renderer, turn)), changing, subject.config.model, known=known
    )


def _with(renderer: Renderer, turn: Messages, settings: dict[str, Any]) -> str:
    """The prompt with other settings, or what the template has against them."""
    from jinja2 import TemplateError

    try:
        return rendered(renderer, turn, add_generation_prompt=True, **settings)
    except TemplateError as error:
        return str(error)


def judge_thinking(begun: str, changing: set[str], config: ModelConfig, *, known: bool) -> Finding:
    """Whether the thinking that is asked for is what the prompt gives.

    Args:
        begun: What the template writes of the model's own turn.
        changing: The settings that change the prompt.
        config: What is asked for.
        known: Whether the template speaks of thinking at all.
    """
    if "<think>" in begun:
        state = (
            "the prompt holds an empty thinking part" if "</think>" in begun else "the prompt opens thinking"
        )
    elif known:
        state = "the template knows thinking and leaves it to the model to begin"
    else:
        state = "the template knows no thinking"
    idle = [name for name in SWITCHES if getattr(config, name) is not None and name not in changing]
    if idle:
        settings = " and ".join(f"model.{name}" for name in idle)
        return Finding("thinking", "warn", f"{state}; {settings} changes nothing", f"leave {settings} unset")
    effect = ", ".join(
        f"model.{name} changes the prompt ({'unset' if (value := getattr(config, name)) is None else value})"
        for name in sorted(changing)
    )
    return Finding("thinking", "pass", "; ".join(filter(None, (state, effect))))


def check_context(subject: Subject) -> Finding:
    """Whether the longest prompt and its answer fit."""
    limit = getattr(subject.text_config, "max_position_embeddings", None)
    return judge_context(subject.longest, subject.config.engine.max_model_len, limit)


def judge_context(found: Sequence[Longest], max_model_len: int, limit: int | None) -> Finding:
    """Whether everything that is asked fits the engine's context, and that the model's; lengths in tokens."""
    worst = max(found, key=lambda row: row.prompt + row.new)
    total = worst.prompt + worst.new
    detail = (
        f"longest: {worst.prompt:,} tokens of {worst.panel} {worst.prompt_id} and {worst.new:,} new are "
        f"{total:,} of engine.max_model_len {max_model_len:,}"
        + (f"; the model was made for {limit:,}" if limit else "")
    )
    setting = "sample.max_new_tokens" if worst.panel == "train" else "evaluate.max_new_tokens"
    if limit is not None and max_model_len > limit:
        return Finding("context", "fail", detail, f"set engine.max_model_len to {limit} or less")
    if total > max_model_len:
        room = limit is None or total <= limit
        raised = f"raise engine.max_model_len to {total} or " if room else ""
        return Finding("context", "fail", detail, f"{raised}lower {setting}")
    return Finding("context", "pass", detail)


def rendered(renderer: Renderer, messages: Messages, day: datetime = PINNED_DAY, **options: Any) -> str:
    """A conversation as the template writes it on a given day, otherwise as every prompt is rendered."""
    text: str = renderer.tokenizer.apply_chat_template(
        messages, tokenize=False, **_given(renderer, day) | options
    )
    return text


def rendered_ids(renderer: Renderer, messages: Messages, **options: Any) -> list[int]:
    """The same as token ids."""
    encoded = renderer.tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, **_given(renderer, PINNED_DAY) | options
    )
    return list(encoded["input_ids"])


def _given(renderer: Renderer, day: datetime) -> dict[str, Any]:
    dated = {"date_string": f"{day:%d %b %Y}", "strftime_now": day.strftime}
    return dated | dict(renderer.template_settings)


def _messages(renderer: Renderer) -> Messages:
    system = [{"role": "system", "content": renderer.system_prompt}] if renderer.system_prompt else []
    return [*system, {"role": "user", "content": QUESTION}]
