"""Rows of a JSONL or Parquet file, of a Hub data set or of its folder: what a data set is before it is tasks.

Only the columns that the settings name are read. No code that comes with a data set runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from ssd_loop import models, progress
from ssd_loop.config import ColumnName, DataConfig
from ssd_loop.errors import ConfigError, SsdLoopError

T = TypeVar("T")
Row = Mapping[str, Any]

DEFAULT_ID = str(DataConfig.model_fields["id_column"].default)
HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(.+))?")
HUB_FILE = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/\w+/[^/]+|[^/]+))?/(.+)")
FILES = (".jsonl", ".parquet")
DATA_SET_FILES = (*FILES, ".json", ".csv", ".arrow")
ROWS_AT_ONCE = 256
SHOWN = 8  # names in a message


@dataclass(frozen=True)
class Table:
    """Rows, read one by one.

    Attributes:
        rows: Each after its place, which messages name.
        columns: What every row has; empty for JSONL, whose rows need not agree.
    """

    rows: Iterable[tuple[str, Any]]
    columns: tuple[str, ...] = ()


def open_table(config: DataConfig, where: str) -> Table:
    """The rows of the source, not yet chosen.

    Args:
        config: Names any source but the built-in problems.
        where: How messages name the section of `config`, such as ``prompts``.

    Raises:
        ConfigError: no such source, subset, split or column. Reading raises it too: a line that is not JSON.
        SsdLoopError: the Hub cannot be reached, or what it sends cannot be stored.
    """
    source = config.source
    local = models.at_home(source)
    if source.endswith(FILES) and (parts := HUB_FILE.fullmatch(source)):
        return _file(_hub_file(parts[1], parts[2], parts[3], config, where), config, where)
    if source.endswith(FILES) and local.is_file():
        return _file(local, config, where)
    if _is_data_set(local):
        return _data_set(str(local.resolve()), None, config, where)
    if not source.endswith(FILES) and (parts := HUB_ID.fullmatch(source)):
        return _data_set(parts[1], parts[2], config, where)
    raise ConfigError(
        f"{where}.source = {source!r} is neither 'builtin', an existing .jsonl or .parquet file, an existing "
        "data set's folder, OWNER/NAME of a Hub data set nor hf://datasets/OWNER/NAME/FILE of such a file"
    )


def _is_data_set(folder: Path) -> bool:
    """Whether a folder has a data set's card, or data at most one folder deep: others take long to search."""
    card = folder / "README.md"
    if card.is_file() and card.read_bytes().startswith(b"---"):
        return True
    return any(file.suffix in DATA_SET_FILES for under in ("*", "*/*") for file in folder.glob(under))


def columns_of(config: DataConfig, role: ColumnName) -> tuple[str, ...]:
    """The columns that hold what this role asks for."""
    named = config.columns.get(role, ())
    return (named,) if isinstance(named, str) else named


def require_columns(names: Collection[str], config: DataConfig, where: str) -> None:
    """Refuse settings that name a column which is not among these."""
    for setting, column in _named(config):
        if root_of(column, names) not in names:
            raise ConfigError(
                f"{where}.{setting} = {column!r} is no column of {config.source}; it has {shown(names)}"
            )


def shown(names: Iterable[Any]) -> str:
    """The first few of these for a message."""
    listed = [str(name)[:40] for name in names]
    return ", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")


def _named(config: DataConfig) -> Iterator[tuple[str, str]]:
    """Every column that the settings name, after the setting that does."""
    yield "prompt_column", config.prompt_column
    if config.id_column != DEFAULT_ID:
        yield "id_column", config.id_column
    for role in config.columns:
        for column in columns_of(config, role):
            yield f"columns.{role}", column
    for column in config.where:
        yield f"where.{column}", column


def root_of(column: str, names: Collection[str]) -> str:
    """The column that is read for it: a for ``a.b``, unless a column has that very name."""
    return column if column in names else column.partition(".")[0]


def _file(path: Path, config: DataConfig, where: str) -> Table:
    if path.suffix == ".jsonl":
        return Table(_jsonl(path, config.source))
    return _parquet(path, config, where)


def _jsonl(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    # Bytes end a line at a line feed alone: JSON strings may hold U+2028 and other separators as they are.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{name} line {number}"
            try:
                yield place, json.loads(line.decode("utf-8"))
            except UnicodeDecodeError:
                raise ConfigError(f"{place} is not UTF-8 text; save it as UTF-8") from None
            except (ValueError, RecursionError):
                raise ConfigError(f"{place} is not JSON; one object a line is expected") from None


def _parquet(path: Path, config: DataConfig, where: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError):
        raise ConfigError(f"{config.source} ({where}.source) is not a whole Parquet file") from None
    names = tuple(file.schema_arrow.names)
    require_columns(names, config, where)

    def rows() -> Iterator[dict[str, Any]]:
        try:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=_needed(names, config)):
                yield from batch.to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{config.source} ({where}.source) is damaged: {str(error)[:160].rstrip('.')}; write it again"
            ) from None

    return Table(_placed(rows(), config), names)


def _placed(rows: Iterable[Row], config: DataConfig) -> Iterator[tuple[str, Row]]:
    return ((f"{config.source} row {number}", row) for number, row in enumerate(rows, 1))


def _needed(names: Collection[str], config: DataConfig) -> list[str]:
    """The columns to read: those that the settings name, and the default id if there is one."""
    wanted = {root_of(column, names) for _, column in _named(config)} | {DEFAULT_ID}
    return [name for name in names if name in wanted]


def _data_set(name: str, revision: str | None, config: DataConfig, where: str) -> Table:
    """The rows of a Hub data set, or of a folder that is laid out like one."""
    import datasets

    if not progress.console.is_terminal:
        datasets.disable_progress_bars()
    with _explained(config, where):
        return _ask_hub(partial(_downloaded, name, revision, config, where), config, where)


def _downloaded(name: str, revision: str | None, config: DataConfig, where: str) -> Table:
    import datasets
    from datasets.packaged_modules.parquet.parquet import ParquetConfig

    build = partial(datasets.load_dataset_builder, name, config.subset, revision=revision)
    try:
        builder = build()
    except ValueError:
        subsets = datasets.get_dataset_config_names(name, revision=revision)
        if config.subset in subsets:
            raise
        asked = f" = {config.subset!r} is no subset of" if config.subset else " is not set for"
        raise ConfigError(f"{where}.subset{asked} {config.source}; it has {shown(subsets)}") from None
    splits = [str(split) for split in builder.config.data_files or ()]
    if config.split not in splits:
        raise ConfigError(
            f"{where}.split = {config.split!r} is no split of {config.source}; it has {shown(splits)}"
        )
    if isinstance(builder.config, ParquetConfig):  # tells its columns first, and may leave some out
        names = builder.as_streaming_dataset(split=config.split).column_names
        require_columns(names, config, where)
        builder = build(columns=_needed(names, config))
    builder.download_and_prepare()
    data = builder.as_dataset(split=config.split)
    names = tuple(data.column_names)
    require_columns(names, config, where)
    rows = data.select_columns(_needed(names, config)).with_format("arrow")
    batches = (table.to_pylist() for table in rows.iter(ROWS_AT_ONCE))
    return Table(_placed(chain.from_iterable(batches), config), names)


def _hub_file(name: str, revision: str | None, file: str, config: DataConfig, where: str) -> Path:
    from huggingface_hub import hf_hub_download

    download = partial(hf_hub_download, name, file, repo_type="dataset", revision=revision)
    return Path(_ask_hub(download, config, where))


def _ask_hub(ask: Callable[[], T], config: DataConfig, where: str) -> T:
    """What the Hub gives, asked again after a passing fault."""
    from huggingface_hub import errors

    setting = f"{where}.source = {config.source!r}"
    try:
        given: T = models.hub_attempts(config.source)(ask)
        return given
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"{setting} is gated on the Hub; accept its licence there and log in with `hf auth login`"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ConfigError(
            f"{setting} is no data set you can read on the Hub; check the spelling, or log in with "
            "`hf auth login` if it is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(
            f"{setting} names a revision that does not exist on the Hub; check what follows the @"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise ConfigError(
            f"{setting} names a file that does not exist in that data set; check its path"
        ) from error
    except (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError) as error:  # type: ignore[attr-defined]
        raise SsdLoopError(
            f"{setting} is not here and the Hub cannot be reached; check the network and run again, or name "
            "a file or folder"
        ) from error
    except OSError as error:
        if error.errno is None:  # a reason in words, such as a data set without files
            raise
        raise SsdLoopError(
            f"{setting} cannot be read or stored ({error.strerror}); make room or set HF_HOME to another "
            "folder"
        ) from error


@contextmanager
def _explained(config: DataConfig, where: str) -> Iterator[None]:
    """Turn what `datasets` raises into settings to correct."""
    from datasets.exceptions import DatasetGenerationError, DatasetsError
    from yaml import YAMLError

    setting = f"{where}.source = {config.source!r}"
    try:
        yield
    except ConfigError:  # a ValueError too
        raise
    except RuntimeError as error:
        if "scripts" not in str(error):
            raise
        raise ConfigError(
            f"{setting} is read by a script of its own, which is never run; name one of its files instead, "
            "as hf://datasets/OWNER/NAME/FILE"
        ) from error
    except StopIteration as error:
        raise ConfigError(f"{setting} holds no rows; name a data set with some") from error
    except (DatasetsError, FileNotFoundError, ValueError, YAMLError) as error:
        told = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        reason = str(told).strip().partition("\n")[0].rstrip(".")
        raise ConfigError(
            f"{setting} cannot be read: {reason[:160]}; check the spelling and the files, or log in with "
            "`hf auth login` if it is private or gated"
        ) from error
