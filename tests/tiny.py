"""Tiny models for tests, built offline from a config and a fixed seed.

Sizes are deliberately unequal, so that a transposed or mixed-up tensor fails instead of passing. The
head size is 32 because vLLM's CPU attention refuses smaller ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

TinyKind = Literal["llama", "qwen3", "qwen3_moe"]

TinyModel = LlamaForCausalLM | Qwen3ForCausalLM | Qwen3MoeForCausalLM

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")  # two, so that no test passes with only the first
CORPUS = (
    "def add(a, b):\n    return a + b\n",
    "def is_even(n: int) -> bool:\n    return n % 2 == 0\n",
    "for i in range(10):\n    print(i, i * i)\n",
    "Write a Python function that returns the largest item of a list.\n",
    "```python\ndef largest(items):\n    return max(items)\n```\n",
    "user system assistant\n",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY_SIZE = 320
CONTEXT = 2048  # the default of engine.max_model_len


def build(kind: TinyKind, folder: Path, dtype: str = "bfloat16", seed: int = 0) -> Path:
    """`folder`, now holding a tiny model of that kind: weights, config, tokenizer, chat template.

    Another `seed` gives other weights for the same architecture, as a training would.
    """
    tokenizer = build_tokenizer()
    stop_ids = [tokenizer.convert_tokens_to_ids(token) for token in STOP_TOKENS]
    model = build_model(kind, len(tokenizer), stop_ids, seed)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(eos_token_id=stop_ids, pad_token_id=stop_ids[1]).save_pretrained(folder)
    return folder


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: any text goes in and comes out unchanged."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(kind: TinyKind, vocabulary_size: int, stop_ids: list[int], seed: int) -> TinyModel:
    """An untrained model in float32 whose law is far from uniform and that sometimes stops."""
    sizes = {
        "vocab_size": vocabulary_size,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": stop_ids,
        "pad_token_id": stop_ids[1],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: TinyModel
        if kind == "llama":
            model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True))
        elif kind == "qwen3_moe":
            experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
            model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **experts, tie_word_embeddings=False))
        else:
            model = Qwen3ForCausalLM(Qwen3Config(**sizes, tie_word_embeddings=False))
        # Longer rows reach higher logits: each stop token comes up every few dozen tokens, not never.
        rows = torch.randn(len(stop_ids), sizes["hidden_size"]) * 1.5 * sizes["initializer_range"]
        with torch.no_grad():
            model.get_output_embeddings().weight[stop_ids] = rows
    return model.eval()
