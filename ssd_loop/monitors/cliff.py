"""A probe inside training: collapse can be a cliff within a round, where a test after it comes too late.

Source: arXiv 2606.21090 (onset at step 15.6 of 20 on average); the rule is the collapse literature's, section
5.2 step 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ssd_loop.monitors.contrast import Floats

TOKENS = 64  # of each text: 1,536 with the built-in 24 texts, two seconds of a 135M model on two cores
TEXTS_AT_ONCE = 4  # their logits take 270 MB with a vocabulary of 262,000
SIGMAS = 4.0  # standard errors beyond the margin


def is_cliff(rise: Floats, margin: float) -> bool:
    """Whether NLL rose by more than `margin` plus four standard errors, or is not finite.

    Args:
        rise: NLL of each text now less at the round's start, nats per token.
        margin: Rise that is tolerated, nats per token.
    """
    if not np.isfinite(rise).all():
        return True
    se = float(rise.std(ddof=1)) / math.sqrt(len(rise)) if len(rise) > 1 else 0.0
    return float(rise.mean()) > margin + SIGMAS * se


@dataclass
class Probe:
    """Fixed texts and what their NLL did since the first measurement.

    Attributes:
        texts: Token ids; the same number of first tokens of each is used.
        margin: Rise that is tolerated, nats per token.
        ends: Whether a cliff ends the training, or is only there to be read.
        cliff: Step at which training ended on a cliff.
    """

    texts: Sequence[Sequence[int]]
    margin: float
    ends: bool = True
    cliff: int | None = None
    _nll: dict[int, Floats] = field(default_factory=dict)

    def measure(self, model: Any, step: int) -> bool:
        """Score the texts under the model as it is; whether training ends on this."""
        nll = self._nll[step] = text_nll(model, self.texts)
        if self.ends and is_cliff(nll - self._nll[min(self._nll)], self.margin):
            self.cliff = step
        return self.cliff is not None

    def diverge(self, step: int) -> None:
        """End the training here: its loss or gradient is no longer finite, whatever the texts say."""
        self.cliff, self._nll[step] = step, np.full(len(self.texts), np.nan)

    def rows(self) -> list[dict[str, float | int | None]]:
        """Mean NLL and its rise at every measured step."""
        start = self._nll[min(self._nll)]
        return [
            {"step": step, "nll": _finite(nll.mean()), "rise": _finite((nll - start).mean())}
            for step, nll in self._nll.items()
        ]

    def metrics(self) -> dict[str, float | int]:
        """The largest rise that was seen, and the step of the cliff if there was one."""
        rises = [row["rise"] for row in self.rows() if row["rise"] is not None]
        found: dict[str, float | int] = {"probe_rise_max": max(rises, default=0.0)}
        return found | ({"cliff_step": self.cliff} if self.cliff is not None else {})

    def state(self) -> dict[str, list[float]]:
        """What was measured so far, as plain data: NLL of every text, by step."""
        return {str(step): nll.tolist() for step, nll in self._nll.items()}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from what `state` said."""
        self._nll = {step: np.array(state[str(step)]) for step in sorted(map(int, state))}


def text_nll(model: Any, texts: Sequence[Sequence[int]]) -> Floats:
    """Mean NLL of each text's first tokens, nats per token; leaves the model as it was."""
    import torch

    length = min(TOKENS + 1, *(len(text) for text in texts))
    tokens = torch.tensor([list(text[:length]) for text in texts], device=model.device)
    training = model.training
    model.eval()
    found = []
    try:
        with torch.no_grad():
            for part in tokens.split(TEXTS_AT_ONCE):
                logits = model(input_ids=part).logits[:, :-1].float()
                logprobs = logits.log_softmax(dim=-1).gather(2, part[:, 1:, None])[..., 0]
                found.append(-logprobs.double().mean(dim=1).cpu())
    finally:
        model.train(training)
    nll: Floats = torch.cat(found).numpy()
    return nll


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
