"""The paper's four panels for two models: how sharp their laws are, and how much decoding leaves open.

Source: arXiv 2604.01193, section 4.2 and figure 6, there on benchmark answers, here along human text. Scores
that a run stores hold 20 tokens of each law; these panels see the whole vocabulary, so that every temperature
is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import ssd_loop.workbench  # noqa: F401  # before torch is imported, whose libraries it settles
from ssd_loop import models
from ssd_loop.config import EvaluateConfig
from ssd_loop.errors import BadArtifactError, ConfigError
from ssd_loop.evaluation import reference_texts
from ssd_loop.laws import (
    Floats,
    check_truncation,
    cumulative_mass,
    entropy_nats,
    support_size,
    temper,
    truncate_ranked,
)
from ssd_loop.monitors.positions import K
from ssd_loop.progress import task
from ssd_loop.prompts import Renderer

RANKS = 60  # of the paper's panel (a)
TEMPERATURES = tuple(round(0.1 * step, 1) for step in range(4, 21))  # 0.4 to 2.0, as in panels (b) to (d)
BIN_EDGES = (0.95, 0.99, 0.999)  # top-20 mass; panel (d) runs from 95 to 99.9 %, its bins are not printed
MIN_TOKENS = 16  # of each text, as evaluate.reference_tokens asks
NUMBERS_AT_ONCE = 2**17  # float64 elements of laws in one piece, 1 MiB: stays in the cache, twice as fast
SHOWN_RANKS = (1, 2, 3, 5, 10, 20, 40, 60)


@dataclass(frozen=True)
class Measured:
    """What is kept of a model's laws at N positions of human text; R ranks, T temperatures.

    Attributes:
        mass: Mass of the likeliest 1 to R tokens in the untouched law, (N, R).
        kept_tokens: Tokens that survive temperature and truncation, (N, T).
        entropy_nats: Entropy of the law that is then sampled from, (N, T).
    """

    mass: Floats
    kept_tokens: Floats
    entropy_nats: Floats


def compare(
    base: str, other: str, *, top_k: int = 20, top_p: float = 0.8, reference_tokens: int = 256, device: str
) -> dict[str, Any]:
    """The four panels of two models along the built-in reference texts, as plain data.

    Both models run in float32, one after the other. The default truncation is the one that the paper's
    instruct models are evaluated with (table 3).

    Args:
        base: The model to compare with: a folder, a Hub id, or the packaged default's name.
        other: The model that is compared, usually a later round. It needs the base's tokenizer.
        top_k: Tokens kept at most at evaluation; 0 is off, and then the whole vocabulary is sorted.
        top_p: Nucleus mass at evaluation; 1 is off.
        reference_tokens: First tokens of each text that are used, 16 or more.
        device: auto, cpu or cuda.

    Returns:
        See `panels`, and besides it `base` and `other` as they were given, `top_k`, `top_p`, `texts` (how
        many) and `reference_tokens`.

    Raises:
        ConfigError: a setting is out of range, a model cannot be used, or the tokenizers differ.
        SsdLoopError: the Hub cannot be reached, or the device is missing.
        BadArtifactError: a model's law is not a number somewhere.
    """
    from ssd_loop.engines.transformers import choose_device

    check_truncation(top_k, top_p)
    if reference_tokens < MIN_TOKENS:
        raise ConfigError(f"reference_tokens is {reference_tokens}; it needs {MIN_TOKENS} or more")
    place = choose_device(device)
    folders = {name: models.resolve(name, None, "auto").path for name in (base, other)}
    texts = _texts(folders, reference_tokens)
    first, second = (_measured(name, folders[name], texts, top_k, top_p, place) for name in (base, other))
    return {
        "base": base,
        "other": other,
        "top_k": top_k,
        "top_p": top_p,
        "texts": len(texts),
        "reference_tokens": reference_tokens,
        **panels(first, second),
    }


def panels(base: Measured, other: Measured) -> dict[str, Any]:
    """Panels (a) to (d) of two models at the same positions, as plain data; all are means over positions.

    Returns:
        `positions`; `ranks` and (a) `cumulative_mass` by rank; `temperatures` and by temperature (b)
        `kept_tokens` and (c) `entropy_nats`, each under `base` and `other`; (d) `bins` of the mass that the
        base gives its 20 likeliest tokens at the position, from `from` up to but without `to` (the last bin
        with it). Each has its `positions`, (b) and (c) over them, and `kept_tokens_ratio` and
        `entropy_nats_ratio`, the other's mean / the base's. The means of a bin without positions are None,
        and so is a ratio to zero.
    """
    pair = {"base": base, "other": other}
    edges = (0.0, *BIN_EDGES, 1.0)
    where = np.digitize(base.mass[:, K - 1], BIN_EDGES)
    return {
        "positions": len(base.mass),
        "ranks": list(range(1, base.mass.shape[1] + 1)),
        "cumulative_mass": {name: _mean(of.mass) for name, of in pair.items()},
        "temperatures": list(TEMPERATURES),
        **_decoded(pair, np.full(len(where), True)),
        "bins": [
            {"from": edges[i], "to": edges[i + 1], "positions": int((where == i).sum())}
            | _with_ratios(_decoded(pair, where == i))
            for i in range(len(edges) - 1)
        ],
    }


def measure(ranked: Floats, top_k: int, top_p: float) -> Measured:
    """What the panels need of raw laws whose tokens come likeliest first.

    Args:
        ranked: (N, W) log-probs of the W likeliest tokens, nats: of at least `RANKS` and `top_k` tokens,
            and of the whole vocabulary where `top_k` is 0.
        top_k: Tokens kept at most; 0 is off.
        top_p: Nucleus mass; 1 is off.
    """
    # What is beyond the top k never comes back: the odds within it settle every temperature.
    candidates = ranked[:, :top_k] if top_k else ranked
    kept, entropy = (np.empty((len(ranked), len(TEMPERATURES))) for _ in range(2))
    rows = max(1, NUMBERS_AT_ONCE // candidates.shape[1])
    for first in range(0, len(candidates), rows):
        some = slice(first, first + rows)
        for column, temperature in enumerate(TEMPERATURES):
            law = truncate_ranked(temper(candidates[some], temperature), 0, top_p)
            kept[some, column] = support_size(law)
            entropy[some, column] = entropy_nats(law)
    return Measured(cumulative_mass(ranked[:, :RANKS], RANKS), kept, entropy)


def _decoded(pair: Mapping[str, Measured], chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """Panels (b) and (c) over the chosen positions."""
    return {
        "kept_tokens": {name: _mean(of.kept_tokens[chosen]) for name, of in pair.items()},
        "entropy_nats": {name: _mean(of.entropy_nats[chosen]) for name, of in pair.items()},
    }


def _with_ratios(means: dict[str, Any]) -> dict[str, Any]:
    ratios = {f"{name}_ratio": _ratios(of["other"], of["base"]) for name, of in means.items()}
    return {**means, **ratios}


def _ratios(above: list[float] | None, below: list[float] | None) -> list[float | None] | None:
    if above is None or below is None:
        return None
    return [a / b if b > 0.0 else None for a, b in zip(above, below, strict=True)]


def _mean(values: Floats) -> list[float] | None:
    return [float(mean) for mean in values.mean(axis=0)] if len(values) else None


def _texts(folders: Mapping[str, Path], tokens: int) -> list[list[int]]:
    """The reference texts as ids that mean the same to all models."""
    from transformers import AutoTokenizer

    found = []
    for folder in folders.values():
        models.check_vocabulary(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        texts = reference_texts(EvaluateConfig(reference_tokens=tokens), Renderer(tokenizer))
        found.append((tokenizer.get_vocab(), [text["token_ids"] for text in texts]))
    if found[0] != found[-1]:
        raise ConfigError(
            f"{' and '.join(folders)} have different tokenizers, so their laws are over different tokens and "
            "cannot be compared; name two models of one family"
        )
    return found[0][1]


def _measured(
    name: str, folder: Path, texts: Sequence[Sequence[int]], top_k: int, top_p: float, device: Any
) -> Measured:
    """One text's laws at a time: the whole vocabulary is held for no more than that."""
    parts: list[Measured] = []
    with task(f"laws of {name}", len(texts), "texts") as progress:
        for ranked in _ranked(folder, texts, top_k, device):
            if np.isnan(ranked).any():
                raise BadArtifactError(f"the law of {name} is not a number somewhere; restore its weights")
            parts.append(measure(ranked, top_k, top_p))
            progress.advance(tokens=len(ranked))
    return Measured(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Measured))
    )


def _ranked(folder: Path, texts: Sequence[Sequence[int]], top_k: int, device: Any) -> Iterator[Floats]:
    """Along each text the raw log-probs, likeliest token first: (T - 1, W), see `measure`."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    model = model.to(device).eval()
    for text in texts:
        with torch.inference_mode():
            ids = torch.tensor([list(text)], device=device)
            law = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(dim=1)  # (T - 1, V)
            width = min(max(RANKS, top_k), law.shape[1]) if top_k else law.shape[1]
            ranked = law.topk(width, dim=1).values
        yield ranked.cpu().numpy().astype(np.float64)


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print the panels as tables."""
    base, other = found["base"], found["other"]
    cut = f"top-k {found['top_k'] or 'off'}, top-p {found['top_p']:g}"
    console.print()
    console.print(f"base: {base}; other: {other}", markup=False, soft_wrap=True)
    console.print(
        f"{found['positions']} positions of {found['texts']} human-written texts; evaluation with {cut}",
        markup=False,
    )
    console.print(_by_rank(found))
    console.print(_by_temperature(found))
    console.print(_by_bin(found))


def _by_rank(found: Mapping[str, Any]) -> Table:
    table = Table(title="(a) Cumulative mass, %", title_justify="left")
    table.add_column("likeliest tokens", justify="right")
    for name in ("base", "other"):
        table.add_column(name, justify="right")
    for rank in (rank for rank in SHOWN_RANKS if rank <= found["ranks"][-1]):
        masses = (found["cumulative_mass"][name][rank - 1] for name in ("base", "other"))
        table.add_row(str(rank), *(f"{100 * mass:.2f}" for mass in masses))
    return table


def _by_temperature(found: Mapping[str, Any]) -> Table:
    table = Table(title="What evaluation leaves open, means over positions", title_justify="left")
    table.add_column("T_eval", justify="right")
    for panel in ("(b) tokens left", "(c) entropy, nats"):
        for name in ("base", "other"):
            table.add_column(f"{panel}: {name}", justify="right")
    for i, temperature in enumerate(found["temperatures"]):
        kept = (f"{found['kept_tokens'][name][i]:.3f}" for name in ("base", "other"))
        entropy = (f"{found['entropy_nats'][name][i]:.4f}" for name in ("base", "other"))
        table.add_row(f"{temperature:.1f}", *kept, *entropy)
    return table


def _by_bin(found: Mapping[str, Any]) -> Table:
    table = Table(
        title="(d) other / base: tokens left, entropy; by the base's top-20 mass",
        title_justify="left",
    )
    table.add_column("T_eval", justify="right")
    for part in found["bins"]:
        table.add_column(f"{_span(part)}\nn = {part['positions']}", justify="right")
    for i, temperature in enumerate(found["temperatures"]):
        table.add_row(f"{temperature:.1f}", *(_pair(part, i) for part in found["bins"]))
    return table


def _span(part: Mapping[str, Any]) -> str:
    low, high = 100 * part["from"], 100 * part["to"]
    return f"{low:g} to {high:g} %" if low else f"under {high:g} %"


def _pair(part: Mapping[str, Any], i: int) -> str:
    ratios = (part[name] for name in ("kept_tokens_ratio", "entropy_nats_ratio"))
    return ", ".join("-" if ratio is None or ratio[i] is None else f"{ratio[i]:.3f}" for ratio in ratios)
