"""Top-k and top-p inside vLLM on a CPU, where its own sampler sorts the whole vocabulary every step."""

from __future__ import annotations

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from ssd_loop.engines.truncation import truncate

Cut = tuple[int, float]  # top_k, top_p
UNCUT: Cut = (0, 1.0)


class FastTruncation(LogitsProcessor):  # type: ignore[misc]
    """Cuts the rows of requests that carry `top_k` and `top_p` in their extra arguments.

    vLLM runs it after the temperature, because it leaves the argmax alone, and reads the raw log-probs
    before it.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._cuts: dict[int, Cut] = {}

    def is_argmax_invariant(self) -> bool:
        """Always: the likeliest token is never cut."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow vLLM's changes of which request sits in which row."""
        process_dict_updates(self._cuts, batch_update, lambda params, _prompt, _output: cut_of(params))

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits (B, V) with every row's tail cut."""
        if not self._cuts:
            return logits
        cuts = [self._cuts.get(row, UNCUT) for row in range(logits.shape[0])]
        top_k = torch.tensor([cut[0] for cut in cuts])
        top_p = torch.tensor([cut[1] for cut in cuts])
        return truncate(logits, top_k, top_p)


def cut_of(params: SamplingParams) -> Cut | None:
    """What a request asks to have cut here, if anything."""
    extra = params.extra_args or {}
    return (extra["top_k"], extra["top_p"]) if "top_k" in extra else None
