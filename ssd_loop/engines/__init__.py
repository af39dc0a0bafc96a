"""Where tokens come from: one Protocol, vLLM and transformers behind it.

An engine serves a whole run. `Engine.load` of a second model swaps the weights in place, so no stage
pays for another start. This module imports neither torch nor vLLM: an engine is opened when needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ssd_loop.config import EngineConfig
from ssd_loop.errors import BadArtifactError, ConfigError

EngineName = Literal["vllm", "transformers"]
FinishReason = Literal["stop", "length"]
WeightsState = tuple[tuple[str, int, int], ...]

# What torch's libraries read once, when they are loaded.
#
# How OpenMP's threads wait for work: asleep they cost a quarter of the speed, being woken some thousand times
# a second; spinning on and on they take the cores from whoever has work. So they spin for some microseconds.
#
# How many compiled products oneDNN keeps, and its C++ layer: by default 1,024 each. Nearly every batch has a
# shape of its own, so they fill up, half a GiB in all. One pass through a model meets some 60, over and over.
CPU_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "1000",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    "LRU_CACHE_CAPACITY": "128",
}


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to draw. Temperature 0 is greedy, top_k 0 is off, top_p 1 is off."""

    prompt_token_ids: tuple[int, ...]
    seed: int
    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """What was drawn.

    `token_ids` includes the stop token that ended it. `logprob` is the sum over `token_ids` in nats
    under the raw model law, before temperature and truncation.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprob: float


@dataclass(frozen=True, slots=True, eq=False)
class TokenScores:
    """The raw model law along a given text; row t belongs to position t + 1.

    The first token has no row. The k columns of `top_ids` and `top_logprobs` are sorted, likeliest first.
    """

    logprobs: NDArray[np.float32]  # (T - 1,) of the actual tokens, nats
    top_ids: NDArray[np.int32]  # (T - 1, k)
    top_logprobs: NDArray[np.float32]  # (T - 1, k), nats


class Engine(Protocol):
    """A model that samples and scores. Always `close` it, also after an error."""

    @property
    def name(self) -> EngineName:
        """Which implementation this is; it is part of the fingerprints."""

    def load(self, model_dir: Path) -> None:
        """Make the weights in `model_dir` the ones that answer; swaps them in place if others did.

        Nothing is done where these very files are loaded already. All folders given to one engine hold
        the same architecture and tokenizer.
        """

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Completions in the order of the requests, each as soon as that order allows.

        Starts from an empty prefix cache, so a fixed list of requests always gives the same bytes.

        Raises:
            ConfigError: At once, if a prompt and its answer do not fit `engine.max_model_len`.
        """

    def score(self, texts: Sequence[Sequence[int]], top_k: int) -> Iterator[TokenScores]:
        """Log-probs of given token ids, with the `top_k` likeliest tokens at each position."""

    def release(self) -> None:
        """Give memory back for as long as nothing is asked of the engine; answers stay the same."""

    def close(self) -> None:
        """Stop the engine and everything it started. Closing twice is allowed."""


def engine_name(config: EngineConfig) -> EngineName:
    """Which engine `open_engine` will open, told without importing it."""
    if config.name != "auto":
        return config.name
    return "vllm" if find_spec("vllm") else "transformers"


def open_engine(config: EngineConfig, dtype: str) -> Engine:
    """The engine that the settings ask for, without a model yet; `dtype` is bfloat16 or float32."""
    if engine_name(config) == "transformers":
        from ssd_loop.engines.transformers import TransformersEngine

        return TransformersEngine(config, dtype)
    _require_vllm()
    from ssd_loop.engines.vllm import VllmEngine

    return VllmEngine(config, dtype)


def check_device(config: EngineConfig) -> None:
    """Refuse an engine or a device that is not here, told without opening the engine.

    Raises:
        ConfigError: vLLM is asked for and not installed.
        SsdLoopError: this machine has no such device, or the engine was built for another.
    """
    if engine_name(config) == "vllm":
        _require_vllm()
    if config.device == "cuda":
        from ssd_loop.engines.transformers import choose_device

        choose_device(config.device)


def _require_vllm() -> None:
    if not find_spec("vllm"):
        raise ConfigError(
            "engine.name is vllm, but vLLM is not installed here; install it or set engine.name to "
            "transformers"
        )


def check_lengths(requests: Sequence[Request], max_model_len: int) -> None:
    """Refuse requests that the engine could only answer by cutting them."""
    for request in requests:
        prompt, new = len(request.prompt_token_ids), request.max_new_tokens
        if prompt == 0:
            raise ConfigError("a prompt has no tokens; every prompt needs at least one")
        if prompt + new > max_model_len:
            raise ConfigError(
                f"a prompt of {prompt} tokens plus max_new_tokens {new} is {prompt + new}, over "
                f"engine.max_model_len {max_model_len}; raise that or lower max_new_tokens"
            )


def check_texts(texts: Sequence[Sequence[int]], max_model_len: int) -> None:
    """Refuse texts that cannot be scored whole."""
    for text in texts:
        if not 2 <= len(text) <= max_model_len:
            raise ConfigError(
                f"a text of {len(text)} tokens cannot be scored; it needs 2 to engine.max_model_len "
                f"{max_model_len} tokens"
            )


def check_context(model_dir: Path, max_model_len: int) -> None:
    """Refuse a context longer than the model in `model_dir` was made for."""
    config = model_dir / "config.json"
    if not config.is_file():
        raise BadArtifactError(f"{model_dir} is not a model folder: config.json is missing there")
    limit = json.loads(config.read_text(encoding="utf-8")).get("max_position_embeddings")
    if limit is not None and max_model_len > limit:
        raise ConfigError(
            f"engine.max_model_len is {max_model_len}, but the model in {model_dir} has a context of "
            f"{limit} tokens; set engine.max_model_len to {limit} or less"
        )


def weights_state(model_dir: Path) -> WeightsState:
    """Path, size and time of change of every weight file: equal means the same weights."""
    files = sorted(model_dir.resolve().glob("*.safetensors"))
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
