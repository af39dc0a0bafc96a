"""Stage `merge`: base plus adapters becomes a model folder.

The sum is made in float32 from the pristine base and rounded once (`ssd_loop.rounding`), never from an
earlier merge. Files are read and written in blocks of rows, so memory does not grow with the model.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ssd_loop import models
from ssd_loop.errors import BadArtifactError
from ssd_loop.lora import Parts, Term, opened, stacked
from ssd_loop.rounding import Rounding, rounded

STAGE_VERSION = 2  # raised when the same inputs would give other weights
BLOCK_ELEMENTS = 2**22  # of one tensor at a time in float32; part of what decides the last bits of a sum
COPY_BYTES = 2**24
WEIGHT_FILES = "*.safetensors"


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where one tensor lies in a safetensors file, in bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(slots=True)
class _Sums:
    """Sums of squares and counts over the elements of all changed tensors."""

    tensors: int = 0
    elements: int = 0
    unchanged: int = 0
    base: float = 0.0
    delta: float = 0.0
    kept: float = 0.0
    error: float = 0.0
    nearest_error: float = 0.0

    def add(self, base: Any, change: Any, exact: Any, written: Any) -> None:
        """Count some rows of a changed tensor; `base`, `change` and `exact` are float32."""
        kept = written.float() - base
        self.elements += base.numel()
        self.unchanged += base.numel() - int(kept.count_nonzero())
        self.base += _dot(base, base)
        self.delta += _dot(change, change)
        self.kept += _dot(kept, change)
        error = written.float() - exact
        self.error += _dot(error, error)
        nearest_error = exact.to(written.dtype).float() - exact
        self.nearest_error += _dot(nearest_error, nearest_error)

    def metrics(self) -> dict[str, float | int]:
        """What the merge did, relative to the size of the update."""
        return {
            "tensors_changed": self.tensors,
            "elements_unchanged_share": _ratio(self.unchanged, self.elements),
            "delta_norm_share": math.sqrt(_ratio(self.delta, self.base)),
            "update_kept_share": _ratio(self.kept, self.delta),
            "rounding_error_share": math.sqrt(_ratio(self.error, self.delta)),
            "nearest_error_share": math.sqrt(_ratio(self.nearest_error, self.delta)),
        }


def merge(
    rounding: Rounding,
    *,
    base_dir: Path,
    terms: Sequence[Term],
    out: Path,
    on_shard: Callable[[int, int], None] | None = None,
) -> dict[str, float | int]:
    """Metrics of the merge; `out` becomes a model folder like `base_dir`, with the adapters added.

    Args:
        rounding: How to round.
        base_dir: The pristine base; never an earlier merge.
        terms: The adapters and their weights in the sum, first round first.
        out: Existing folder for the model.
        on_shard: Called after each file of weights with (files done, files).

    Raises:
        BadArtifactError: An adapter that does not fit the base, is no plain LoRA, or gives values that are
            not finite; or a file that reads back other than written.
    """
    shards = sorted(base_dir.glob(WEIGHT_FILES))
    entries = {shard: _entries(shard) for shard in shards}
    shapes = {entry.name: entry.shape for shard in shards for entry in entries[shard]}
    sums = _Sums()
    with opened(terms, shapes) as parts:
        for index, shard in enumerate(shards, 1):
            _merge_shard(shard, entries[shard], parts, rounding, out / shard.name, sums)
            if on_shard:
                on_shard(index, len(shards))
    for file in models.model_files(base_dir):
        if file.suffix != ".safetensors":
            shutil.copyfile(file, out / file.name)
    if not (out / models.GENERATION_CONFIG).is_file():
        # Without it a plain loader would know one stop token of several, or none.
        models.write_json(out / models.GENERATION_CONFIG, models.generation_config(base_dir))
    return sums.metrics()


def _merge_shard(
    shard: Path,
    entries: Sequence[_Entry],
    parts: Parts,
    rounding: Rounding,
    out: Path,
    sums: _Sums,
) -> None:
    """Write one file of weights with the base's own header, then read part of it back."""
    last: tuple[_Entry, bytes] | None = None
    with shard.open("rb") as source, out.open("wb") as target:
        _copy(source, target, entries[0].begin if entries else shard.stat().st_size)
        for entry in entries:
            if entry.name not in parts:
                _copy(source, target, entry.end - entry.begin)
                continue
            sums.tensors += 1
            for written in _blocks(source, entry, parts, rounding, sums):
                data = _raw(written)
                target.write(data)
            last = entry, data
    if last is None:
        return
    entry, data = last
    with out.open("rb") as file:
        file.seek(entry.end - len(data))
        if file.read(len(data)) != data:
            raise BadArtifactError(f"{entry.name} in {out} reads back other than written; check the disk")


def _blocks(source: IO[bytes], entry: _Entry, parts: Parts, rounding: Rounding, sums: _Sums) -> Iterator[Any]:
    """The merged rows of one tensor, some at a time."""
    import torch

    dtype = _dtype(entry)
    rows, columns = entry.shape
    a, b = stacked(parts[entry.name])
    step = max(1, BLOCK_ELEMENTS // columns)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        buffer = bytearray(source.read(count * columns * dtype.itemsize))
        stored = torch.frombuffer(buffer, dtype=dtype).view(count, columns)
        pristine, change = stored.float(), b[first : first + count] @ a
        exact = pristine + change
        written = rounded(exact, dtype, entry.name, rounding, start=first * columns)
        sums.add(pristine, change, exact, written)
        yield written


def _entries(file: Path) -> list[_Entry]:
    """Every tensor of a safetensors file in the order in which they lie there.

    The format: 8 bytes with the header's length, little-endian, the header as JSON, then the tensors
    without gaps (safetensors README, "Format").
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(length)
    start = 8 + length
    try:
        header = json.loads(text)
        entries = [
            _Entry(name, row["dtype"], tuple(row["shape"]), *(start + at for at in row["data_offsets"]))
            for name, row in header.items()
            if name != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError):
        raise BadArtifactError(f"{file} has no safetensors header; fetch it again") from None
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    edges = [start, *(entry.end for entry in entries)]
    if edges[:-1] != [entry.begin for entry in entries] or edges[-1] != file.stat().st_size:
        raise BadArtifactError(f"{file} is not as long as its header says; fetch it again")
    return entries


def _dtype(entry: _Entry) -> Any:
    import torch

    known = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16}
    if entry.dtype not in known:
        raise BadArtifactError(
            f"{entry.name} of the base is stored as {entry.dtype}, and only bfloat16 and float32 can be "
            "merged into; set model.dtype to one of them"
        )
    return known[entry.dtype]


def _raw(tensor: Any) -> bytes:
    """The tensor's bytes as they lie in a file."""
    import torch

    data: bytes = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return data


def _copy(source: IO[bytes], target: IO[bytes], count: int) -> None:
    """Copy `count` bytes from one open file to another in bounded memory."""
    while count:
        data = source.read(min(count, COPY_BYTES))
        if not data:
            raise BadArtifactError(f"{source.name} ends before its last tensor; fetch it again")
        target.write(data)
        count -= len(data)


def _dot(left: Any, right: Any) -> float:
    import torch

    return float(torch.dot(left.reshape(-1), right.reshape(-1)))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
