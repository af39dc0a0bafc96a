"""The transformers engine: slower than vLLM, but it runs wherever PyTorch does.

Every request draws from a generator of its own, seeded with its own seed, so what its neighbours in the
batch are changes its answer no more than float noise does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ssd_loop.config import EngineConfig
from ssd_loop.engines import (
    Completion,
    EngineName,
    Request,
    TokenScores,
    WeightsState,
    check_context,
    check_lengths,
    check_texts,
    weights_state,
)
from ssd_loop.engines.truncation import truncate
from ssd_loop.errors import SsdLoopError, StageFailedError

BATCH_SIZE = 32  # fixed, so that a list of requests always makes the same batches
PADDING_TOKEN = 0  # never seen by the model: the attention mask hides it


class TransformersEngine:
    """One model in this process."""

    name: EngineName = "transformers"

    def __init__(self, config: EngineConfig, dtype: str) -> None:
        self._max_model_len = config.max_model_len
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._device = choose_device(config.device)
        self._model: PreTrainedModel | None = None
        self._weights: WeightsState | None = None

    def load(self, model_dir: Path) -> None:
        """Make the weights in `model_dir` the ones that answer."""
        check_context(model_dir, self._max_model_len)
        wanted = weights_state(model_dir)
        if wanted == self._weights:
            return
        transformers_logging.disable_progress_bar()
        self._model, self._weights = None, None  # before the next is read, or both need room
        model = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=self._dtype, trust_remote_code=False, use_safetensors=True
        )
        self._model, self._weights = model.to(self._device).eval(), wanted

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Completions in the order of the requests."""
        check_lengths(requests, self._max_model_len)
        return self._batches(tuple(requests))

    def score(self, texts: Sequence[Sequence[int]], top_k: int) -> Iterator[TokenScores]:
        """Log-probs of given token ids, with the `top_k` likeliest tokens at each position."""
        check_texts(texts, self._max_model_len)
        model = self._loaded()
        return (score_text(model, text, top_k) for text in tuple(texts))

    def release(self) -> None:
        """Give the device's memory back; the weights wait in main memory."""
        if self._model is not None and self._device.type != "cpu":
            self._model.to("cpu")
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Drop the model."""
        self.release()
        self._model, self._weights = None, None

    def _loaded(self) -> PreTrainedModel:
        assert self._model is not None, "load a model before asking the engine for anything"
        return self._model.to(self._device)

    def _batches(self, requests: tuple[Request, ...]) -> Iterator[Completion]:
        model = self._loaded()
        for first in range(0, len(requests), BATCH_SIZE):
            with torch.inference_mode(), memory_told():
                completions = generate_batch(model, requests[first : first + BATCH_SIZE])
            yield from completions


@contextmanager
def memory_told() -> Iterator[None]:
    """Turn the device's want of memory into the settings that need less."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise StageFailedError(
            f"sampling ran out of GPU memory in batches of {BATCH_SIZE}; lower sample.max_new_tokens and "
            "evaluate.max_new_tokens, or set engine.name to vllm with a lower engine.gpu_memory_utilization"
        ) from error


def choose_device(wanted: str) -> torch.device:
    """The device that the settings ask for, if this machine has it."""
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise SsdLoopError("engine.device is cuda, but PyTorch sees no CUDA device; set it to auto")
    return torch.device("cuda" if has_cuda and wanted != "cpu" else "cpu")


@dataclass
class Row:
    """One request while it is being answered."""

    request: Request
    generator: torch.Generator
    token_ids: list[int]
    logprob: float = 0.0

    def completion(self) -> Completion | None:
        """The answer, once it has ended."""
        if self.token_ids and self.token_ids[-1] in self.request.stop_token_ids:
            return Completion(tuple(self.token_ids), "stop", self.logprob)
        if len(self.token_ids) == self.request.max_new_tokens:
            return Completion(tuple(self.token_ids), "length", self.logprob)
        return None


def generate_batch(model: PreTrainedModel, requests: Sequence[Request]) -> list[Completion]:
    """The answers to one batch. Rows that have ended stay in it, so its shape never changes."""
    device = model.device
    rows = [Row(request, torch.Generator().manual_seed(request.seed), []) for request in requests]
    input_ids, mask = left_padded([request.prompt_token_ids for request in requests])
    input_ids, mask = input_ids.to(device), mask.to(device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)  # (B, T)
    temperature = torch.tensor([request.temperature for request in requests])
    top_k = torch.tensor([request.top_k for request in requests])
    top_p = torch.tensor([request.top_p for request in requests])
    cache = None
    while any(row.completion() is None for row in rows):
        output = model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        logits = output.logits[:, -1].float().cpu()  # (B, V)
        drawn = draw(logits, temperature, top_k, top_p, [row.generator for row in rows])
        logprobs = logits.log_softmax(dim=1).gather(1, drawn[:, None])[:, 0]
        for row, token, logprob in zip(rows, drawn.tolist(), logprobs.tolist(), strict=True):
            if row.completion() is None:
                row.token_ids.append(token)
                row.logprob += logprob
        input_ids = drawn[:, None].to(device)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return [completion for row in rows if (completion := row.completion()) is not None]


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both (B, T), with every prompt's last token in the last column."""
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), PADDING_TOKEN)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return input_ids, mask


def draw(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    generators: Sequence[torch.Generator],
) -> torch.Tensor:
    """One token id per row, (B,): temperature, top-k, top-p, then the Gumbel-max draw.

    The largest of the log-probs plus independent Gumbel noise is a draw from the law (Gumbel 1954; Maddison
    et al. 2014, section 2). Temperature 0 is the likeliest token.
    """
    is_greedy = temperature == 0.0
    scaled = logits / torch.where(is_greedy, 1.0, temperature)[:, None]
    cut = truncate(scaled, top_k, top_p)
    noise = torch.stack(
        [torch.empty(logits.shape[1]).exponential_(generator=generator) for generator in generators]
    )
    drawn = (cut - noise.log()).argmax(dim=1)  # -log of an exponential variable is Gumbel
    return torch.where(is_greedy, logits.argmax(dim=1), drawn)


def score_text(model: PreTrainedModel, text: Sequence[int], top_k: int) -> TokenScores:
    """The raw law along one text."""
    ids = torch.tensor([list(text)], device=model.device)
    with torch.inference_mode():
        logprobs = model(input_ids=ids).logits[0, :-1].float().log_softmax(dim=1)  # (T - 1, V)
        actual = logprobs.gather(1, ids[0, 1:, None])[:, 0]
        top = logprobs.topk(top_k, dim=1)
    return TokenScores(
        logprobs=actual.cpu().numpy(),
        top_ids=top.indices.cpu().numpy().astype(np.int32),
        top_logprobs=top.values.cpu().numpy(),
    )
