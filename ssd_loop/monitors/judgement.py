"""Self-judgement (collapse): does the model still put its right answers above its wrong ones?"""

from __future__ import annotations

import numpy as np

from ssd_loop.monitors.contrast import Values
from ssd_loop.monitors.draws import Draws


def measure(draws: Draws) -> Values:
    """Area under the ROC curve of the own mean log-prob, within problems.

    Per problem the pairs of a right and a wrong answer that are in the right order (ties count half) over
    all such pairs, from ranks (Mann and Whitney 1947): U = rank sum of the right ones - R (R + 1) / 2.
    Comparing within problems keeps easy problems from faking a good judgement.
    """
    below = (draws.score[..., :, None] > draws.score[..., None, :]).sum(axis=-1)
    ties = (draws.score[..., :, None] == draws.score[..., None, :]).sum(axis=-1)
    rank = below + (ties + 1.0) / 2.0
    right = draws.passed.sum(axis=-1).astype(float)
    ordered = np.where(draws.passed, rank, 0.0).sum(axis=-1) - right * (right + 1.0) / 2.0
    return Values(ordered, right * (draws.samples - right))
