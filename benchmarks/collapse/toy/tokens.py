"""The toy model's tokenizer: whole lexemes of the grammar, about a hundred symbols, and a chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from benchmarks.collapse.toy import grammar as g
from ssd_loop.problems.twins import CONSONANTS

END, BEGIN, UNKNOWN, PADDING = "<|im_end|>", "<|im_start|>", "<|unknown|>", "<|endoftext|>"
SPECIAL = (PADDING, BEGIN, END, UNKNOWN)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = (
    *("```python\n", "```", "def ", "return ", "for ", " for ", " in ", " if ", "if ", "lambda "),
    *("\n ", "\n  ", "\n   ", "\n", " ", "# ", " of ", "user", "assistant", "it is "),
    *("len", "max", "min", "set", "map", "filter", "range", "task_", "arg_1", "xs", "ys", "x", ".sort()"),
    *("[", "]", "(", ")", "{", "}", ":", "[::-1]", "[-1]", "[0]", "[1:]", ",", "."),
    *("==", "=", "+=", "|=", "%", "//", "*", "+", "-", "<", ">"),
    *(" plus ", " minus "),
)


def lexemes() -> tuple[str, ...]:
    """Every symbol but the special ones, the longest first: a text is cut at the longest that fits."""
    found = {
        *WORDS,
        *g.AGGREGATES,
        *g.MODIFIERS,
        *g.NUMBERS,
        *map(str.strip, g.COMMENTS),
        *"0123456789",
        *CONSONANTS,
    }
    return tuple(sorted(found, key=lambda lexeme: (-len(lexeme), lexeme)))


def build() -> PreTrainedTokenizerFast:
    """The tokenizer; text of the grammar goes in and comes out unchanged."""
    known = lexemes()
    vocabulary = {lexeme: index for index, lexeme in enumerate((*SPECIAL, *known))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    pattern = Regex("|".join(map(re.escape, known)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PADDING,
        unk_token=UNKNOWN,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def written(talk: g.Talk) -> str:
    """A talk as text: the question, and every answer as a turn of the assistant."""
    asked = f"{BEGIN}user\n{talk.question}{END}\n"
    return asked + "".join(f"{BEGIN}assistant\n{text}{END}\n" for text in talk.answers)


def encoded(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids, nothing added."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def is_known(ids: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether every piece of a text has a symbol of its own."""
    return tokenizer.unk_token_id not in ids
