"""Rows from files, folders and a Hub; what cannot be read is named by its setting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssd_loop.config import DataConfig
from ssd_loop.errors import ConfigError
from ssd_loop.tables import Table, open_table

ROWS = [{"id": str(number), "prompt": f"Task {number}", "long": "x" * 50} for number in range(700)]
COMMIT = "c" * 40


@pytest.fixture(autouse=True)
def no_shared_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A downloaded data set with two subsets, one of which has two splits and two files."""
    root = tmp_path / "tiny"
    for name, rows in {"a/0": ROWS[:400], "a/1": ROWS[400:], "b/t": ROWS[:3], "b/u": ROWS[3:5]}.items():
        path = root / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    (root / "README.md").write_text(
        "---\nconfigs:\n"
        "- {config_name: first, data_files: [{split: train, path: a/*.parquet}]}\n"
        "- {config_name: second, data_files: [{split: test, path: b/t.parquet}, "
        "{split: train, path: b/u.parquet}]}\n---\n"
    )
    return root


def opened(source: object, section: str = "prompts", **settings: Any) -> Table:
    return open_table(DataConfig.model_validate({"source": str(source), **settings}), section)


def rows_of(source: object, **settings: Any) -> list[dict[str, Any]]:
    return [row for _, row in opened(source, **settings).rows]


def test_every_kind_of_source_gives_the_same_rows(folder: Path, tmp_path: Path) -> None:
    jsonl, parquet = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    jsonl.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), parquet, row_group_size=333)
    asked = [{"id": row["id"], "prompt": row["prompt"]} for row in ROWS]
    assert rows_of(jsonl) == ROWS
    assert rows_of(parquet) == asked
    assert rows_of(folder, subset="first") == asked
    assert rows_of(folder, subset="second", split="test") == asked[:3]
    assert rows_of(folder, subset="second") == asked[3:5]


def test_a_folder_of_json_files_is_a_data_set_too(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "test.jsonl").write_text('{"prompt": "a", "more": {"x": 1}}\n{"prompt": "b"}\n')
    assert rows_of(tmp_path / "tiny", split="test") == [{"prompt": "a"}, {"prompt": "b"}]


def test_places_count_lines_and_rows(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert [place for place, _ in opened(path).rows] == [f"{path} line 1", f"{path} line 3"]
    places = [place for place, _ in opened(folder, subset="second", split="test").rows]
    assert places == [f"{folder} row {number}" for number in (1, 2, 3)]


def test_parts_of_a_column_and_every_named_column_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    row = {"a.b": 1, "meta": {"x": 2}, "t1": "s", "t2": "t", "d": "2025", "q": "Why?", "no": 0, "key": 7}
    pq.write_table(pa.Table.from_pylist([row]), path)
    settings = {
        "prompt_column": "q",
        "id_column": "key",
        "columns": {"tests": ["t1", "t2"], "entry_point": "meta.x", "tier": "a.b"},
        "where": {"d": "2025"},
    }
    row.pop("no")
    assert rows_of(path, **settings) == [row]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prompt_column": "text"}, "evaluate.sources.ood.prompt_column = 'text' is no column of"),
        ({"id_column": "name"}, "evaluate.sources.ood.id_column = 'name' is no column of"),
        ({"columns": {"tier": "level"}}, "evaluate.sources.ood.columns.tier = 'level' is no column of"),
        ({"where": {"ok.x": True}}, "evaluate.sources.ood.where.ok.x = 'ok.x' is no column of"),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_a_column_that_is_not_there_is_refused_before_a_row_is_read(
    folder: Path, kind: str, settings: dict[str, Any], said: str
) -> None:
    source = folder / "b" / "t.parquet" if kind == "parquet" else folder
    subset = {} if kind == "parquet" else {"subset": "first"}
    with pytest.raises(ConfigError) as caught:
        opened(source, "evaluate.sources.ood", **subset, **settings)
    assert str(caught.value).startswith(said)
    assert str(caught.value).endswith("it has id, prompt, long")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"subset": "third"}, "prompts.subset = 'third' is no subset of .*; it has first, second"),
        ({}, "prompts.subset is not set for .*; it has first, second"),
        ({"subset": "second", "split": "dev"}, "prompts.split = 'dev' is no split of .*; it has test, train"),
    ],
)
def test_what_a_data_set_has_is_listed(folder: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        opened(folder, **settings)


def test_a_folder_without_data_is_not_searched(tmp_path: Path) -> None:
    """A data set's files lie in its folder or one below, unless its card says otherwise."""
    deep = tmp_path / "tiny" / "a" / "b" / "train.jsonl"
    deep.parent.mkdir(parents=True)
    deep.write_text('{"prompt": "a"}\n')
    with pytest.raises(ConfigError, match="neither 'builtin', an existing"):
        opened(tmp_path / "tiny")
    (tmp_path / "tiny" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert rows_of(tmp_path / "tiny") == [{"prompt": "a"}]


@pytest.mark.parametrize("name", ["empty", "torn.parquet", "torn"])
def test_a_source_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "torn.parquet":
        path.write_bytes(b"PAR1 and no more")
    else:
        path.mkdir()
    if name == "torn":
        (path / "train.jsonl").write_text('{"prompt": "a"}\n{"prompt')
    with pytest.raises(ConfigError, match=r"prompts\.source") as caught:
        rows_of(path)
    assert name in str(caught.value)
    assert len(str(caught.value)) <= 400


class FakeHub(BaseHTTPRequestHandler):
    """The part of the Hub's interface that a data set's download uses, over one folder."""

    def __init__(self, folder: Path, refusals: list[int], *arguments: Any) -> None:
        self.folder, self.refusals = folder, refusals
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api, files = "/api/datasets/org/tiny", "/datasets/org/tiny/resolve/"
        if self.refusals and path.startswith(files):
            self.answer(self.refusals.pop(), b"", {})
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            under = self.folder / path.removeprefix(f"{api}/tree/{COMMIT}").lstrip("/")
            self.answer(200, json.dumps([self.entry(file) for file in under.iterdir()]).encode(), {})
        elif path.startswith(f"{api}/revision/"):
            self.answer(200, json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": []}).encode(), {})
        elif path.startswith((f"{files}main/", f"{files}{COMMIT}/")):
            self.file(self.folder / path.removeprefix(files).partition("/")[2])
        elif path.startswith(files):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/datasets/org/gated/"):
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif path.startswith("/datasets/org/scripted/"):
            self.answer(200, b"raise SystemExit", {"X-Repo-Commit": COMMIT, "ETag": '"s"'})
        else:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def entry(self, file: Path) -> dict[str, Any]:
        kind = "directory" if file.is_dir() else "file"
        name = file.relative_to(self.folder).as_posix()
        return {"type": kind, "path": name, "size": file.stat().st_size, "oid": name}

    def file(self, file: Path) -> None:
        if file.is_file():
            self.answer(200, file.read_bytes(), {"X-Repo-Commit": COMMIT, "ETag": f'"{file.stem}"'})
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def hub(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """A Hub on this machine that holds `org/tiny`; yields its address and the answers it refuses with."""
    refusals: list[int] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(FakeHub, folder, refusals))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", refusals
    server.shutdown()
    server.server_close()


READ = """
import json, logging, sys
from ssd_loop.config import DataConfig
from ssd_loop.errors import SsdLoopError
from ssd_loop.tables import open_table

logging.basicConfig(format="%(message)s")
for settings in json.loads(sys.argv[1]):
    try:
        rows = open_table(DataConfig.model_validate(settings), "prompts").rows
        print(json.dumps([0, [row["prompt"] for _, row in rows]]))
    except SsdLoopError as error:
        print(json.dumps([error.exit_code, str(error)]))
"""


def read_from(address: str, home: Path, sources: list[dict[str, Any]], offline: str = "") -> list[list[Any]]:
    """Read in a process of its own: the Hub's address is read once, at import."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": offline,
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-c", READ, json.dumps(sources)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_hub_gives_data_sets_and_single_files(hub: tuple[str, list[int]], tmp_path: Path) -> None:
    address, refusals = hub
    refusals.append(503)
    file = "hf://datasets/org/tiny{}/b/t.parquet"
    sources = [
        {"source": file.format("")},
        {"source": file.format(f"@{COMMIT}")},
        {"source": "org/tiny", "subset": "first"},
        {"source": f"org/tiny@{COMMIT}", "subset": "second", "split": "test"},
    ]
    prompts = [row["prompt"] for row in ROWS]
    answers = read_from(address, tmp_path / "home", sources)
    assert answers == [[0, prompts[:3]], [0, prompts[:3]], [0, prompts], [0, prompts[:3]]]
    assert refusals == []
    offline = read_from("http://127.0.0.1:9", tmp_path / "home", sources[:1], offline="1")
    assert offline == answers[:1]


def test_what_the_hub_refuses_is_a_setting_to_correct(hub: tuple[str, list[int]], tmp_path: Path) -> None:
    said = {
        "org/typo": "'org/typo' doesn't exist on the Hub or cannot be accessed",
        "org/gated": "'org/gated' is a gated dataset on the Hub",
        "org/tiny@typo": "Revision 'typo' doesn't exist",
        "org/scripted": "a script of its own, which is never run; name one of its files",
        "hf://datasets/org/tiny/typo.jsonl": "a file that does not exist",
        "hf://datasets/org/tiny@typo/b/t.parquet": "a revision that does not exist",
        "hf://datasets/org/typo/b/t.parquet": "no data set you can read on the Hub",
        "hf://datasets/org/gated/b/t.parquet": "gated on the Hub; accept its licence",
        "hf://datasets/org/tiny/README.md": "neither 'builtin', an existing",
    }
    answers = read_from(hub[0], tmp_path / "home", [{"source": source} for source in said])
    for (source, part), (code, message) in zip(said.items(), answers, strict=True):
        assert code == 2, message
        assert message.startswith(f"prompts.source = {source!r} ")
        assert part in message
        assert len(message) <= 400


def test_a_hub_that_cannot_be_reached_is_no_mistake_of_the_settings(tmp_path: Path) -> None:
    sources = [{"source": "org/tiny"}, {"source": "hf://datasets/org/tiny/rows.jsonl"}]
    for code, message in read_from("http://127.0.0.1:9", tmp_path, sources, offline="1"):
        assert code == 1
        assert "cannot be reached; check the network" in message


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "import ssd_loop.prompts\n"
        "sys.exit(bool({'torch', 'transformers', 'huggingface_hub', 'datasets'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
