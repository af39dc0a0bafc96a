"""What a round did to open and to sure places of human text, from the scores that its evaluation stored.

A fork is a position with several good next tokens, a lock one with a single right token before a tail of
wrong ones (arXiv 2604.01193, section 4.1). The paper expects self-distillation to cut the tail at locks and
to keep forks open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_loop.durable import finite
from ssd_loop.errors import BadArtifactError
from ssd_loop.monitors.forks import labels
from ssd_loop.monitors.positions import K, stack, top_logprobs
from ssd_loop.records import TextScore

SUPPORT_MASS = 0.95  # mass that the support has to hold (ours): the top-p of the paper's thinking models


def at_places(baseline: Sequence[TextScore], current: Sequence[TextScore]) -> dict[str, Any]:
    """Means over the forks and over the locks, in round 0 and in this round, as plain data.

    Places are labelled as the monitors do, by the mean of both rounds' entropies (`monitors.forks.labels`).
    All means are over positions; a value that is not finite is None.

    Args:
        baseline: Scores of round 0.
        current: Scores of this round, of the same texts in the same order.

    Returns:
        Under `forks` and `locks`: `positions`, how many there are, and under `baseline` and `current` the
        means `entropy_nats` (over the 20 likeliest tokens and one bucket for the rest: a lower bound),
        `support_tokens` (likeliest tokens needed to hold 95 % of the mass; 21 where the 20 do not hold it,
        so a lower bound too), `support_capped_share` (share of positions counted as 21) and `tail_mass`
        (mass outside of the 20, a probability).

    Raises:
        BadArtifactError: the two rounds did not score the same texts.
    """
    if _shape(baseline) != _shape(current):
        raise BadArtifactError(
            "the scores of the two rounds are not of the same texts; restore the scores.parquet of both"
        )
    rounds = {"baseline": stack(baseline), "current": stack(current)}
    supports = {"baseline": _supports(baseline), "current": _supports(current)}
    result: dict[str, Any] = {}
    for name, mask in zip(("forks", "locks"), labels(rounds["baseline"], rounds["current"]), strict=True):
        result[name] = {"positions": int(mask.sum())}
        for which, positions in rounds.items():
            support = supports[which][mask[positions.present]]
            result[name][which] = {
                "entropy_nats": float(positions.entropy[mask].mean()),
                "support_tokens": float(support.mean()),
                "support_capped_share": float((support > K).mean()),
                "tail_mass": float(positions.tail[mask].mean()),
            }
    return dict(finite(result))


def _shape(scores: Sequence[TextScore]) -> list[tuple[str, int]]:
    return [(score.text_id, len(score.logprobs)) for score in scores]


def _supports(scores: Sequence[TextScore]) -> NDArray[np.int64]:
    """Likeliest tokens needed to hold `SUPPORT_MASS`, K + 1 where K do not: (positions of all texts)."""
    mass = np.concatenate([np.exp(top_logprobs(score)).cumsum(axis=1) for score in scores])  # (N, K)
    return np.asarray(1 + (~(mass >= SUPPORT_MASS)).sum(axis=1))
