"""Rows and their Parquet form: nothing lost, and the same bytes every time."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssd_loop.records import (
    ROWS_PER_GROUP,
    SCHEMAS,
    Dropped,
    Result,
    Sample,
    Stored,
    derive_seed,
    from_plain,
    read_rows,
    shortened,
    write_rows,
)

SAMPLE = Sample(
    panel="train",
    prompt_id="réverse-list",
    sample_index=3,
    seed=2**63 - 1,
    policy_round=0,
    prompt_token_ids=(1, 2, 3),
    token_ids=(),
    text="```python\r\nx = '\u2028'\n```",
    finish_reason="length",
    logprob=-0.1 - 1e-16,
)
WRITE = """
import sys
from pathlib import Path
from ssd_loop.records import Sample, write_rows
rows = [Sample("train", f"p{i}", i, i * 7, 1, tuple(range(i % 5)), (i, i + 1), "x" * (i % 9), "stop", -i / 3)
        for i in range(3000)]
write_rows(Path(sys.argv[1]), Sample, rows)
"""


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (Sample, SAMPLE),
        (Dropped, Dropped("p", 1, "stub")),
        (Result, Result("probe", "p", 0, "passed", "ab" * 32)),
        (Result, Result("probe", "p", 0, "no_code", None)),
    ],
)
def test_rows_come_back_as_they_were(tmp_path: Path, kind: type, row: object) -> None:
    path = tmp_path / "rows.parquet"
    write_rows(path, kind, [row, row])
    assert read_rows(path, kind) == [row, row]


@pytest.mark.parametrize("kind", [Sample, Dropped, Result])
def test_no_rows_are_a_file_too(tmp_path: Path, kind: type) -> None:
    write_rows(tmp_path / "none.parquet", kind, [])
    assert read_rows(tmp_path / "none.parquet", kind) == []


def test_columns_and_types_are_the_documented_ones(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.parquet", Sample, [SAMPLE])
    schema = pq.read_schema(tmp_path / "rows.parquet")
    assert {field.name: str(field.type) for field in schema} == {
        "panel": "string",
        "prompt_id": "string",
        "sample_index": "int32",
        "seed": "int64",
        "policy_round": "int32",
        "prompt_token_ids": "list<element: int32>",
        "token_ids": "list<element: int32>",
        "text": "string",
        "finish_reason": "string",
        "logprob": "double",
    }


@pytest.mark.parametrize("kind", [Sample, Dropped, Result])
def test_every_field_has_a_column(kind: type) -> None:
    assert [field.name for field in dataclasses.fields(kind)] == SCHEMAS[kind].names


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    hashes = set()
    for name in ("a.parquet", "b.parquet"):
        subprocess.run([sys.executable, "-c", WRITE, str(tmp_path / name)], check=True)
        hashes.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(hashes) == 1
    assert pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0).num_rows == ROWS_PER_GROUP


def test_plain_lists_become_tuples() -> None:
    plain = {**dataclasses.asdict(SAMPLE), "prompt_token_ids": [1, 2, 3], "token_ids": []}
    assert from_plain(Sample, plain) == SAMPLE


def test_a_seed_never_moves() -> None:
    """Old runs resume only while this value stays."""
    assert derive_seed(0, 1, "train") == 5910333112369824931


def test_seeds_differ_with_each_part_and_fit_63_bits() -> None:
    parts = [(s, r, p, i) for s in range(3) for r in range(5) for p in ("a", "b", "ab") for i in range(20)]
    seeds = [derive_seed(*part) for part in parts]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("ab", "c") != derive_seed("a", "bc")


def test_a_long_text_is_shown_from_both_ends() -> None:
    assert shortened("abc", 3) == "abc"
    assert shortened("a" * 600 + "b" * 1400, 1000).split("\n") == [
        "a" * 500,
        "[... 1,000 characters left out ...]",
        "b" * 500,
    ]


@pytest.mark.parametrize("count", [0, 1, ROWS_PER_GROUP, 2 * ROWS_PER_GROUP + 1])
def test_rows_written_as_they_come_are_those_of_one_table(tmp_path: Path, count: int) -> None:
    rows = [
        dataclasses.replace(SAMPLE, prompt_id=f"p{i}", token_ids=tuple(range(i % 7)), text="é" * (i % 3000))
        for i in range(count)
    ]
    write_rows(tmp_path / "rows.parquet", Sample, rows)
    columns = {f.name: [getattr(row, f.name) for row in rows] for f in dataclasses.fields(Sample)}
    table = pa.table(columns, schema=SCHEMAS[Sample])
    pq.write_table(table, tmp_path / "table.parquet", row_group_size=ROWS_PER_GROUP, compression="zstd")
    assert (tmp_path / "rows.parquet").read_bytes() == (tmp_path / "table.parquet").read_bytes()
    stored = Stored(tmp_path / "rows.parquet", Sample)
    assert list(stored) == rows
    assert list(stored) == rows  # again from the beginning
