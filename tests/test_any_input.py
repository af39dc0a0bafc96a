"""Whatever settings and data files hold: they are taken, or refused in one sentence."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_loop import sources
from ssd_loop.config import DataConfig, RunConfig
from ssd_loop.config_file import load
from ssd_loop.errors import SsdLoopError

# The same inputs in every run: a suite that fails now and then teaches nothing.
settings.register_profile("fixed", derandomize=True, max_examples=150, deadline=None, database=None)
settings.load_profile("fixed")

NAMES = sorted(
    {name for f in RunConfig.model_fields.values() for name in getattr(f.annotation, "model_fields", ())}
)
SECTIONS = sorted(RunConfig.model_fields)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)
ONE_SECTION = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), VALUES, max_size=3)
SETTINGS = st.dictionaries(st.sampled_from(SECTIONS) | st.text(max_size=5), ONE_SECTION | VALUES, max_size=3)
COLUMNS = st.sampled_from(["id", "prompt", "tests", "other"])
ROWS = st.lists(
    st.dictionaries(COLUMNS, VALUES.map(lambda v: json.loads(json.dumps(v, default=str))), max_size=4)
)


def taken(settings_: dict[str, Any], path: Path | None = None) -> RunConfig | None:
    """The config; None where it is refused as it should be."""
    try:
        return load(path, settings_)
    except SsdLoopError as error:
        said = str(error)
    assert 0 < len(said) <= 400
    return None


@given(SETTINGS)
def test_any_mapping_is_taken_or_refused(given_: dict[str, Any]) -> None:
    config = taken(given_)
    if config is not None:
        assert (
            RunConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config
        )


@given(st.text(max_size=60) | SETTINGS.map(lambda data: yaml.safe_dump(data, allow_unicode=True)))
def test_any_text_as_config_is_taken_or_refused(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        taken({}, path)


def read(data: bytes, **more: Any) -> None:
    """Read bytes as a data set, which gives rows or one sentence."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(data)
        try:
            found = sources.load_tasks(
                DataConfig.model_validate({"source": str(path), **more}), "heldout", "prompts"
            )
            said = f"{len(found)} rows" if found else ""
        except SsdLoopError as error:
            said = str(error)
    assert 0 < len(said) <= 400


@given(st.binary(max_size=60))
def test_any_bytes_as_rows_are_read_or_refused(data: bytes) -> None:
    read(data)


@given(ROWS, st.sampled_from(["none", "python", "stdin", "exact"]))
def test_any_rows_are_read_or_refused(rows: list[dict[str, Any]], checker: str) -> None:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    read(data, checker=checker, **({} if checker == "none" else {"columns": {"tests": "tests"}}))
