"""The rows that stages exchange, and their Parquet form.

One writer, fixed row groups and no clock in the files: the same rows give the same bytes. A file is
always written from rows, never from a table that was read back, because that changes its bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Outcome = Literal["passed", "failed", "timeout", "crashed", "no_code", "not_run"]
ROWS_PER_GROUP = 1024
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Sample:
    """One completion as it was drawn.

    Attributes:
        panel: Problem set the prompt belongs to; "train" for training prompts.
        prompt_id: Id of the prompt within its panel.
        sample_index: Which of the prompt's completions.
        seed: Seed of this completion alone.
        policy_round: Round whose weights drew it.
        prompt_token_ids: The rendered prompt.
        token_ids: The completion, its stop token included.
        text: The completion decoded, without the stop token; after a prompt that opened thinking it begins
            with that opening (docs/decisions/0011).
        finish_reason: "stop", or "length" when it was cut.
        logprob: Sum over `token_ids` under the raw model law, nats.
    """

    panel: str
    prompt_id: str
    sample_index: int
    seed: int
    policy_round: int
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finish_reason: Literal["stop", "length"]
    logprob: float


@dataclass(frozen=True)
class Dropped:
    """A sample that is not trained on, and the first filter that matched."""

    prompt_id: str
    sample_index: int
    reason: str


@dataclass(frozen=True)
class Result:
    """What became of one sample's program.

    Attributes:
        behaviour: Hash of what it returned on the probe inputs; None if it did not run.
    """

    panel: str
    problem_id: str
    sample_index: int
    outcome: Outcome
    behaviour: str | None


@dataclass(frozen=True)
class Trait:
    """What the monitors look at in one sample, besides its outcome.

    Attributes:
        shape: Hash of the program's canonical syntax tree; None if it does not parse.
        tokens: Length of the completion.
        cut: Whether the length limit cut it.
        loops: Whether it repeats itself (`ssd_loop.monitors.degeneracy.loops`).
        logprob: Sum over the completion under the raw model law, nats.
    """

    panel: str
    problem_id: str
    sample_index: int
    shape: str | None
    tokens: int
    cut: bool
    loops: bool
    logprob: float


@dataclass(frozen=True)
class TextScore:
    """The raw model law along one reference text of T + 1 tokens; position t foretells token t + 1.

    Attributes:
        logprobs: (T) log-probs of the text's own tokens, nats.
        top_ids: (T x K) ids of the likeliest tokens, position by position, likeliest first.
        top_logprobs: (T x K) their log-probs, nats.
    """

    text_id: str
    logprobs: tuple[float, ...]
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


_STRING, _INT32, _INT64 = pa.string(), pa.int32(), pa.int64()
_FLOAT32, _FLOAT64, _BOOL = pa.float32(), pa.float64(), pa.bool_()
SCHEMAS: dict[type, Any] = {
    Sample: pa.schema(
        [
            ("panel", _STRING),
            ("prompt_id", _STRING),
            ("sample_index", _INT32),
            ("seed", _INT64),
            ("policy_round", _INT32),
            ("prompt_token_ids", pa.list_(_INT32)),
            ("token_ids", pa.list_(_INT32)),
            ("text", _STRING),
            ("finish_reason", _STRING),
            ("logprob", _FLOAT64),
        ]
    ),
    Dropped: pa.schema([("prompt_id", _STRING), ("sample_index", _INT32), ("reason", _STRING)]),
    Result: pa.schema(
        [
            ("panel", _STRING),
            ("problem_id", _STRING),
            ("sample_index", _INT32),
            ("outcome", _STRING),
            ("behaviour", _STRING),
        ]
    ),
    Trait: pa.schema(
        [
            ("panel", _STRING),
            ("problem_id", _STRING),
            ("sample_index", _INT32),
            ("shape", _STRING),
            ("tokens", _INT32),
            ("cut", _BOOL),
            ("loops", _BOOL),
            ("logprob", _FLOAT64),
        ]
    ),
    TextScore: pa.schema(
        [
            ("text_id", _STRING),
            ("logprobs", pa.list_(_FLOAT32)),
            ("top_ids", pa.list_(_INT32)),
            ("top_logprobs", pa.list_(_FLOAT32)),
        ]
    ),
}

Row = TypeVar("Row", Sample, Dropped, Result, Trait, TextScore)


def write_rows(path: Path, kind: type[Row], rows: Iterable[Row]) -> None:
    """Write rows of one kind as Parquet, a row group at a time."""
    with Writer(path, kind) as writer:
        for row in rows:
            writer.add(row)


class Writer(Generic[Row]):
    """Writes rows of one kind as they come, and holds no more than a row group of them."""

    def __init__(self, path: Path, kind: type[Row]) -> None:
        self._kind: type[Row] = kind
        self._rows: list[Row] = []
        self._is_empty = True
        self._file = pq.ParquetWriter(path, SCHEMAS[kind], compression="zstd")

    def __enter__(self) -> Writer[Row]:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None and (self._rows or self._is_empty):
            self._flush()  # without any row an empty row group
        self._file.close()

    def add(self, row: Row) -> None:
        """Write one more."""
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        self._file.write_table(_table(self._kind, self._rows), row_group_size=ROWS_PER_GROUP)
        self._rows, self._is_empty = [], False


def _table(kind: type[Row], rows: Sequence[Row]) -> Any:
    columns = [[getattr(row, f.name) for row in rows] for f in fields(kind)]
    return pa.Table.from_arrays(
        [pa.array(c, type=t.type) for c, t in zip(columns, SCHEMAS[kind], strict=True)],
        schema=SCHEMAS[kind],
    )


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Read rows of one kind."""
    return [from_plain(kind, row) for row in pq.read_table(path).to_pylist()]


@dataclass(frozen=True)
class Stored(Generic[Row]):
    """The rows of a file, read again a row group at a time whenever they are gone over."""

    path: Path
    kind: type[Row]

    def __len__(self) -> int:
        count: int = pq.read_metadata(self.path).num_rows
        return count

    def __iter__(self) -> Iterator[Row]:
        with pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):  # `iter_batches` holds on to what it has read
                for row in file.read_row_group(group).to_pylist():
                    yield from_plain(self.kind, row)


def from_plain(kind: type[Row], row: dict[str, Any]) -> Row:
    """A row from plain data; lists become tuples."""
    frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return kind(**frozen)  # type: ignore[arg-type]


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the things that name it: run seed, round, purpose or prompt id, index."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def shortened(text: str, limit: int) -> str:
    """The text, or `limit` characters of it: its start and its end, where loops and cuts show."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out ...]\n{text[-half:]}"


def quantiles(name: str, values: Sequence[float]) -> dict[str, float]:
    """Some quantiles of values as metrics: ``{name}_q05`` and so on."""
    found = np.quantile(values, QUANTILES)
    return {f"{name}_q{round(100 * q):02d}": float(v) for q, v in zip(QUANTILES, found, strict=True)}
