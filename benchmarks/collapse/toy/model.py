"""The toy model: a Llama of a quarter of a million weights, pre-trained on draws of the grammar and cached.

    python -m benchmarks.collapse.toy.model [--steps 1500]

The same settings and code give the same weights on one machine (one thread, fixed seeds); the folder's name
is a hash of the recipe and the grammar.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.collapse.toy import grammar as g
from benchmarks.collapse.toy import tokens
from ssd_loop import model_cache
from ssd_loop.durable import sha256_json

CACHE = Path("build/collapse")
VERSION = 1  # raised when the same recipe would give other weights
IGNORED = -100
CONTEXT = 256
RENAMED = 0.2  # share of talks with a twin's names
TYPOS, NEIGHBOURS = 0.004, 4  # share of tokens that are another one by mistake, and of how many others
DOMAINS: dict[g.Domain, float] = {"A": 0.42, "B": 0.42, "C": 0.16}


@dataclass(frozen=True)
class Recipe:
    """How the toy model is made.

    Attributes:
        width: Tokens of a training row: a question and as many answers as fit, the last one cut.
        batch: Rows per step.
        rate: Peak learning rate of Adam, a cosine down to a tenth after 5 % of warm-up.
    """

    steps: int = 1500
    batch: int = 48
    width: int = 96
    rate: float = 4e-3
    hidden: int = 96
    layers: int = 2
    heads: int = 4
    feed_forward: int = 256
    seed: int = 0


def build(recipe: Recipe = Recipe(), cache: Path = CACHE, say: Callable[[str], None] | None = None) -> Path:
    """The folder of the pre-trained model; trained first where it is not in the cache."""
    settings = [VERSION, asdict(recipe), DOMAINS, RENAMED, TYPOS, NEIGHBOURS]
    key = sha256_json([*settings, *tokens.lexemes(), *_language()])[:12]
    return model_cache.cached(cache, f"toy-{key}", lambda out: save(pretrained(recipe, say), out))


def _language() -> list[object]:
    """What humans write, and how often."""
    tasks = [*g.tasks("A"), *g.tasks("B")]
    laws = [(task.id, g.answer(task, program), p) for task in tasks for program, p in g.law(task).items()]
    return [*laws, g.COMMENTED, g.SECOND_VARIABLE, g.SLIPS, *g.sums()]


def save(model: LlamaForCausalLM, out: Path) -> None:
    """Write weights, config, tokenizer and stop tokens as a Hugging Face folder."""
    tokenizer = tokens.build()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    stop, padding = (tokenizer.convert_tokens_to_ids(token) for token in (tokens.END, tokens.PADDING))
    GenerationConfig(eos_token_id=[stop, padding], pad_token_id=padding).save_pretrained(out)


def untrained(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The model before its first step, in float32."""
    stop, padding = (tokenizer.convert_tokens_to_ids(token) for token in (tokens.END, tokens.PADDING))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=[stop, padding],
        pad_token_id=padding,
    )
    return LlamaForCausalLM(config)


def pretrained(recipe: Recipe, say: Callable[[str], None] | None = None) -> LlamaForCausalLM:
    """A model that has read fresh draws of the grammar, every token of them."""
    tokenizer = tokens.build()
    rng = random.Random(recipe.seed)
    with _alone(recipe.seed):
        model = untrained(recipe, tokenizer).train()
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        warm = max(1, recipe.steps // 20)
        started = time.monotonic()
        for step in range(recipe.steps):
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate * _schedule(step, warm, recipe.steps)
            ids = batch(recipe, tokenizer, rng)
            logits = model(input_ids=ids.clamp(min=0)).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), ignore_index=IGNORED
            )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            if say and (step + 1) % 100 == 0:
                say(f"step {step + 1}: {loss.item():.3f} nats, {time.monotonic() - started:.0f} s")
    return model.eval()


def _schedule(step: int, warm: int, steps: int) -> float:
    if step < warm:
        return (step + 1) / warm
    return 0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, steps - warm))


def batch(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> torch.Tensor:
    """(batch, width) token ids, padded with IGNORED."""
    rows = torch.full((recipe.batch, recipe.width), IGNORED)
    domains = rng.choices(list(DOMAINS), list(DOMAINS.values()), k=recipe.batch)
    for row, domain in enumerate(domains):
        talk = g.talk(domain, rng, 4, renamed=domain != "C" and rng.random() < RENAMED)
        ids = mistyped(tokens.encoded(tokenizer, tokens.written(talk))[: recipe.width], rng)
        rows[row, : len(ids)] = torch.tensor(ids)
    return rows


def mistyped(ids: Sequence[int], rng: random.Random) -> list[int]:
    """The tokens with a slip here and there: so sure places have a tail of wrong tokens, as in real code."""
    first = len(tokens.SPECIAL)
    return [
        rng.choice(neighbours(token)) if token >= first and rng.random() < TYPOS else token for token in ids
    ]


@cache
def neighbours(token: int) -> tuple[int, ...]:
    """What is written by mistake for a token."""
    first = len(tokens.SPECIAL)
    others = [i for i in range(first, first + len(tokens.lexemes())) if i != token]
    return tuple(random.Random(f"neighbours {token}").sample(others, NEIGHBOURS))


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """One thread, one seed, deterministic kernels; the process is given back as it was."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def main() -> None:
    """Pre-train, or say where the model is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--cache", type=Path, default=CACHE)
    options = parser.parse_args()
    print(build(Recipe(steps=options.steps), options.cache, _say))


def _say(text: Any) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
