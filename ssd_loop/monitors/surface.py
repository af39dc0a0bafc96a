"""Surface variety of texts: reported for the reader, never decided on.

Self-BLEU and compression move with length, number and boilerplate of samples, so they are taken at a fixed
number of samples and bytes, and still say less than `richness` (collapse literature, section 2).
"""

from __future__ import annotations

import lzma
from collections.abc import Sequence

PER_PROBLEM = 4  # samples of a problem that self-BLEU compares: it rises with their number
BYTES = 2**16  # of text that are compressed: the ratio rises with them


def self_bleu(groups: Sequence[Sequence[str]]) -> float | None:
    """Mean over problems of each sample's BLEU against the problem's others, 0 to 1; higher is more alike.

    The first four samples of every problem count; None where no problem has four. BLEU with add-k smoothing
    on sacrebleu's own tokens (Zhu et al. 2018 for self-BLEU; Post 2018 for sacrebleu).
    """
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(effective_order=True, smooth_method="add-k")
    scores = []
    for texts in groups:
        few = list(texts[:PER_PROBLEM])
        if len(few) < PER_PROBLEM:
            continue
        for index, text in enumerate(few):
            others = few[:index] + few[index + 1 :]
            scores.append(bleu.sentence_score(text, others).score / 100.0)
    return sum(scores) / len(scores) if scores else None


def compression_ratio(texts: Sequence[str]) -> float | None:
    """Bytes of the texts over their xz-compressed bytes, on the first 64 KiB; None where there are fewer."""
    raw = "\n".join(texts).encode()[:BYTES]
    return len(raw) / len(lzma.compress(raw)) if len(raw) == BYTES else None
