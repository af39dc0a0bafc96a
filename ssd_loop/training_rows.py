"""What a training reads: rows of prompt and completion, mapped from a file, and the order they come in."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ssd_loop import durable
from ssd_loop.errors import StageFailedError

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100  # the label that carries no loss (torch's cross_entropy)
ROWS = "rows.arrow"  # while training
ROWS_AT_ONCE = 1024  # while they are written
POOL_BATCHES = 50  # sorted by length together, as transformers' LengthGroupedSampler does


Item = TypeVar("Item", covariant=True)


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One sample: the rendered prompt and the completion, stop token included if it has one."""

    prompt_token_ids: Sequence[int]
    token_ids: Sequence[int]


class Counted(Protocol[Item]):
    """What can be counted and gone over more than once, wherever it lies."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Item]: ...


def example(row: TrainingRow) -> dict[str, list[int]]:
    """The row as TRL takes it: prompt and completion joined, no loss on the prompt."""
    prompt, completion = list(row.prompt_token_ids), list(row.token_ids)
    if not prompt or not completion:
        raise StageFailedError(
            "a sample has an empty prompt or completion, and training needs a token of each; "
            "add empty to filter.filters"
        )
    return {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}


@contextmanager
def on_disk(rows: Counted[TrainingRow], out: Path) -> Iterator[tuple[Dataset, NDArray[np.int32]]]:
    """The rows as a data set that is mapped from a file, so that memory does not grow with them.

    Yields:
        The data set, and (rows, 2) tokens of prompt and completion. The file is gone afterwards.
    """
    import pyarrow as pa
    from datasets import Dataset

    ids = pa.list_(pa.int32())
    schema = pa.schema([("input_ids", ids), ("labels", ids)])
    lengths = np.empty((len(rows), 2), np.int32)
    file = out / ROWS
    waiting = iter(rows)
    try:
        with (
            durable.disk_errors(file),
            pa.OSFile(str(file), "wb") as sink,
            pa.ipc.new_stream(sink, schema) as to,
        ):
            for at in range(0, len(lengths), ROWS_AT_ONCE):
                some = list(islice(waiting, ROWS_AT_ONCE))
                lengths[at : at + len(some)] = [(len(r.prompt_token_ids), len(r.token_ids)) for r in some]
                to.write_batch(pa.RecordBatch.from_pylist([example(row) for row in some], schema))
        yield Dataset.from_file(str(file)), lengths
    finally:
        file.unlink(missing_ok=True)


def reading_order(lengths: Sequence[int], *, batch_size: int, epochs: int, seed: int) -> list[int]:
    """Which row comes when: every row once per epoch, batches of like length in random order.

    Rows of like length share a batch, because padding costs time and teaches nothing. Rows that fill no
    batch move into the next epoch, so that only the very last batch can be smaller.
    """
    rng = random.Random(seed)
    order: list[int] = []
    left_over: list[int] = []
    for _ in range(epochs):
        epoch = list(range(len(lengths)))
        rng.shuffle(epoch)
        waiting = left_over + epoch
        whole = len(waiting) - len(waiting) % batch_size
        left_over = waiting[whole:]
        batches = []
        for start in range(0, whole, POOL_BATCHES * batch_size):
            pool = waiting[start : min(whole, start + POOL_BATCHES * batch_size)]
            pool.sort(key=lengths.__getitem__)
            batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
        rng.shuffle(batches)
        order += [index for batch in batches for index in batch]
    return order + left_over
