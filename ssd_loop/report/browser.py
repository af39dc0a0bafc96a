"""The samples of a run, small enough to travel inside one page: which are shown, and how they are packed."""

from __future__ import annotations

import base64
import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssd_loop import evaluation, filtering, sampling
from ssd_loop.records import Dropped, Result, shortened
from ssd_loop.report.shelf import Shelf

PER_ROUND = 8  # of one prompt's samples in one round
MOST_SAMPLES = 10_000
MOST_BYTES = 3_500_000  # packed; the page around it has some hundred kilobytes
MOST_CHARACTERS = 6_000  # of one text, whose middle is left out beyond that
TRAIN = "train"
TOKENIZER = "tokenizer.json"

Key = tuple[str, str]  # panel and prompt


@dataclass(frozen=True)
class Shown:
    """What the page's sample browser holds.

    Attributes:
        packed: JSON, gzipped, as base64: ``[{"panel", "id", "prompt", "samples": [[round, index, state, cut,
            text], ...]}, ...]``.
        samples: How many samples are in it.
        drawn: How many there are on disk.
        prompts: How many prompts are in it.
        all_prompts: How many there are.
    """

    packed: str
    samples: int
    drawn: int
    prompts: int
    all_prompts: int

    @property
    def sentence(self) -> str:
        """How much of the run is shown."""
        if self.samples == self.drawn:
            return f"All {self.samples:,} samples of {self.prompts:,} prompts."
        prompts = f"all {self.prompts:,} prompts"
        if self.prompts < self.all_prompts:
            prompts = f"{self.prompts:,} of {self.all_prompts:,} prompts, evenly chosen"
        return (
            f"{self.samples:,} of {self.drawn:,} samples: {prompts}, and of each the first {PER_ROUND} "
            "samples of a round."
        )


@dataclass
class _Drawn:
    """Keys of all samples on disk, and where their texts are."""

    files: list[tuple[int, str, Path]] = field(default_factory=list)  # round, stage, file
    total: int = 0
    shown: Counter[Key] = field(default_factory=Counter)  # samples of a prompt that may be shown


def gather(shelf: Shelf, *, most_samples: int = MOST_SAMPLES, most_bytes: int = MOST_BYTES) -> Shown | None:
    """The samples of a run as the page holds them; None where there are none.

    Args:
        shelf: The run.
        most_samples: How many are shown at most; beyond that prompts are chosen evenly.
        most_bytes: Of the packed text; the same holds.
    """
    drawn = _keys(shelf)
    if not drawn.total:
        return None
    share = min(1.0, most_samples / drawn.shown.total())
    while True:
        chosen = _evenly(drawn.shown, share)
        entries = _entries(shelf, drawn, chosen)
        packed = pack(entries)
        if len(packed) <= most_bytes or len(chosen) == len({panel for panel, _ in chosen}):
            samples = sum(len(entry["samples"]) for entry in entries)
            return Shown(packed, samples, drawn.total, len(entries), len(drawn.shown))
        share *= 0.9 * most_bytes / len(packed)


def pack(entries: Any) -> str:
    """Plain data as JSON, gzipped, as base64: it holds no character that means something to HTML."""
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), mtime=0)).decode("ascii")


def _keys(shelf: Shelf) -> _Drawn:
    found = _Drawn()
    for n, stage in sorted(shelf.stages):
        if stage not in ("sample", "evaluate"):
            continue
        if (path := shelf.file(n, stage, sampling.SAMPLES)) is None:
            continue
        table = pq.read_table(path, columns=["panel", "prompt_id", "sample_index"])
        found.files.append((n, stage, path))
        found.total += len(table)
        table = table.filter(pc.field("sample_index") < PER_ROUND)
        found.shown.update(zip(*(table[name].to_pylist() for name in ("panel", "prompt_id")), strict=True))
    return found


def _evenly(samples: Mapping[Key, int], share: float) -> set[Key]:
    """A share of each panel's prompts, evenly over their order; at least one of each."""
    panels: dict[str, list[Key]] = defaultdict(list)
    for key in samples:
        panels[key[0]].append(key)
    chosen = set()
    for keys in panels.values():
        wanted = max(1, int(share * len(keys)))
        chosen |= {keys[i * len(keys) // wanted] for i in range(wanted)}
    return chosen


def _entries(shelf: Shelf, drawn: _Drawn, chosen: Collection[Key]) -> list[dict[str, Any]]:
    """What is shown, training prompts first."""
    rows: dict[Key, list[list[Any]]] = defaultdict(list)
    tokens: dict[Key, list[int]] = {}
    wanted = sorted({prompt for _, prompt in chosen})
    for n, stage, path in drawn.files:
        states = _filtered(shelf, n) if stage == "sample" else _judged(shelf, n)
        columns = ["panel", "prompt_id", "sample_index", "finish_reason", "text"]
        some = pc.field("prompt_id").isin(pa.array(wanted)) & (pc.field("sample_index") < PER_ROUND)
        for row in pq.read_table(path, columns=columns, filters=some).to_pylist():
            key = row["panel"], row["prompt_id"]
            if key in chosen:
                index = row["sample_index"]
                state = states.get((*key, index), "")
                cut = row["finish_reason"] == "length"
                rows[key].append([n, index, state, cut, shortened(row["text"], MOST_CHARACTERS)])
        if any(key not in tokens for key in chosen):
            tokens |= _prompt_tokens(path, some, chosen, tokens)
    texts = _decoded(shelf, tokens)
    order = sorted(rows, key=lambda key: (key[0] != TRAIN, key[0]))
    return [
        {
            "panel": panel,
            "id": prompt,
            "prompt": texts.get((panel, prompt), ""),
            "samples": rows[panel, prompt],
        }
        for panel, prompt in order
    ]


def _filtered(shelf: Shelf, n: int) -> dict[tuple[str, str, int], str]:
    """Whether each training sample was kept, or why it was dropped."""
    states: dict[tuple[str, str, int], str] = {}
    if path := shelf.file(n, "filter", filtering.KEPT):
        table = pq.read_table(path, columns=["prompt_id", "sample_index"])
        states |= dict.fromkeys(_triples(TRAIN, table.to_pylist()), "kept")
    for row in shelf.rows(n, "filter", filtering.DROPPED, Dropped) or ():
        states[TRAIN, row.prompt_id, row.sample_index] = f"dropped: {row.reason}"
    return states


def _judged(shelf: Shelf, n: int) -> dict[tuple[str, str, int], str]:
    """What became of each answer when it was measured."""
    rows = shelf.rows(n, "evaluate", evaluation.RESULTS, Result) or ()
    return {(row.panel, row.problem_id, row.sample_index): row.outcome.replace("_", " ") for row in rows}


def _triples(panel: str, rows: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str, int]]:
    return ((panel, row["prompt_id"], row["sample_index"]) for row in rows)


def _prompt_tokens(
    path: Path, some: Any, chosen: Collection[Key], known: Collection[Key]
) -> dict[Key, list[int]]:
    """Rendered prompts of the chosen keys that are not known yet."""
    columns = ["panel", "prompt_id", "prompt_token_ids"]
    first = some & (pc.field("sample_index") == 0)
    rows = pq.read_table(path, columns=columns, filters=first).to_pylist()
    found = {(row["panel"], row["prompt_id"]): row["prompt_token_ids"] for row in rows}
    return {key: ids for key, ids in found.items() if key in chosen and key not in known}


def _decoded(shelf: Shelf, tokens: Mapping[Key, Sequence[int]]) -> dict[Key, str]:
    """Prompts as the model saw them, by the tokenizer that lies with any merged model."""
    from tokenizers import Tokenizer

    merged = [n for n, stage in shelf.stages if stage == "merge"]
    path = next((path for n in merged if (path := shelf.file(n, "merge", TOKENIZER))), None)
    if path is None:
        shelf.missing.append(
            "prompts as text: no merged model with a tokenizer, so the browser shows their names alone"
        )
        return {}
    tokenizer = Tokenizer.from_file(str(path))
    return {
        key: shortened(tokenizer.decode(list(ids), skip_special_tokens=False), MOST_CHARACTERS)
        for key, ids in tokens.items()
    }
