"""Every mistake is one sentence with its exit code and leaves the folder as it was: one table of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from ssd_loop import sources
from ssd_loop.cli import main
from ssd_loop.engines.transformers import memory_told
from ssd_loop.engines.vllm import explained
from ssd_loop.errors import StageFailedError
from tests import tiny

Prepare = Callable[[Path], object]
FAST = [
    *("--engine.name", "transformers", "--engine.max_model_len", "1024", "--track.mode", "disabled"),
    *("--baselines.temperatures", "[]", "--prompts.limit", "8", "--sample.max_new_tokens", "8"),
    *("--evaluate.limit", "4", "--evaluate.max_new_tokens", "8", "--evaluate.reference_tokens", "32"),
    *("--sandbox.execute", "false", "--filter.filters", "empty", "--rounds", "1"),
]
RUN = [*FAST, "--model.name", "model"]
DATA = [*RUN, "--prompts.source", "rows.jsonl"]
TABLE = [*RUN, "--prompts.source", "rows.parquet"]
FOLDER = [*RUN, "--prompts.source", "data"]
FILE = ["--config", "mine.yaml", "--run", "mine"]
ROW = {"id": "a", "prompt": "Add two numbers."}


def nothing(_here: Path) -> None:
    """No preparation."""


def put(name: str, content: str | bytes) -> Prepare:
    def prepare(here: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def yaml(text: str) -> Prepare:
    return put("mine.yaml", text)


def rows(*given: Any) -> Prepare:
    return put("rows.jsonl", "".join(json.dumps(row) + "\n" for row in given))


def parquet(given: list[dict[str, Any]] | pa.Table) -> Prepare:
    table = given if isinstance(given, pa.Table) else pa.Table.from_pylist(given)
    return lambda here: pq.write_table(table, here / "rows.parquet")


def flipped(here: Path) -> None:
    parquet([{"id": str(i), "prompt": f"Do {i} things. " * 20} for i in range(500)])(here)
    data = bytearray((here / "rows.parquet").read_bytes())
    data[200:3000] = bytes(byte ^ 0x5A for byte in data[200:3000])
    (here / "rows.parquet").write_bytes(data)


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
)


def without(*names: str) -> Prepare:
    return lambda here: [(here / "model" / name).unlink() for name in names]


def cut(name: str, size: int) -> Prepare:
    path = f"model/{name}"
    return lambda here: (here / path).write_bytes((here / path).read_bytes()[:size])


def changed(name: str, **values: Any) -> Prepare:
    def prepare(here: Path) -> None:
        path = here / "model" / name
        kept = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))

    return prepare


def pickled(here: Path) -> None:
    (here / "model" / "model.safetensors").rename(here / "model" / "pytorch_model.bin")


def misshapen(here: Path) -> None:
    path = here / "model" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "mlp" in name)
    tensors[name] = tensors[name][:10].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


def unsharded(here: Path) -> None:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (here / "model" / "model.safetensors.index.json").write_text(json.dumps(index))


def without_a_tensor(here: Path) -> None:
    path = here / "model" / "model.safetensors"
    tensors = load_file(path)
    named = dict.fromkeys(tensors, path.name)
    del tensors["model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": named}
    path.with_name("model.safetensors.index.json").write_text(json.dumps(index))


def panel(row: dict[str, Any], checker: str = "python") -> Prepare:
    def prepare(here: Path) -> None:
        (here / "held.jsonl").write_text(json.dumps(row) + "\n")
        source = {"source": "held.jsonl", "checker": checker, "columns": {"tests": "tests"}}
        (here / "mine.yaml").write_text(json.dumps({"evaluate": {"sources": {"heldout": source}}}))

    return prepare


BOMB = "x0: &x0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"x{i + 1}: &x{i + 1} [{','.join([f'*x{i}'] * 9)}]\n" for i in range(12)
)
TEMPLATE = "model/chat_template.jinja"
HELD = {"id": "a", "prompt": "Write f."}

# id, command line, what is prepared, exit code, fragments of the last line: the value and the way out.
CASES: list[tuple[str, list[str], Prepare, int, list[str]]] = [
    # --- settings
    ("rounds 1001", ["--rounds", "1001"], nothing, 2, ["'1001'", "--rounds", "1000"]),
    ("rounds x", ["--rounds", "x"], nothing, 2, ["'x'", "--rounds"]),
    ("nan flag", ["--sample.temperature", "nan"], nothing, 2, ["'nan'", "finite"]),
    ("inf in a file", FILE, yaml("train: {learning_rate: .inf}\n"), 2, ["inf", "mine.yaml", "finite"]),
    ("yes for a number", FILE, yaml("rounds: yes\n"), 2, ["rounds = True", "a number is expected"]),
    ("on for a count", FILE, yaml("sample: {top_k: on}\n"), 2, ["sample.top_k = True", "a number"]),
    ("a date", FILE, yaml("rounds: 2020-01-01\n"), 2, ["rounds", "integer"]),
    ("a number as key", FILE, yaml("1: 2\n"), 2, ["1", "Keys should be strings"]),
    ("an empty section", FILE, yaml("sample:\n"), 2, ["sample = None", "leave it out"]),
    ("nested too deeply", FILE, yaml("a: " + "[" * 3000), 2, ["mine.yaml", "nested too deeply"]),
    ("an alias bomb", FILE, yaml(BOMB + "sample: {seed: *x12}\n"), 2, ["sample.seed = [[", "mine.yaml"]),
    ("a bomb as value", FILE, yaml(BOMB.replace("x0:", "rounds:", 1)), 2, ["rounds", "mine.yaml"]),
    ("thousands of digits", FILE, yaml(f"sample: {{top_k: 0x{'F' * 6000}}}"), 2, ["a very large number"]),
    ("more than 32 bits", ["--prompts.limit", "9999999999"], nothing, 2, ["'9999999999'", "2147483647"]),
    ("a long key", FILE, yaml("k" * 900 + ": 1\n"), 2, ["unknown setting kkk", "--help lists"]),
    ("inside a source", FILE, yaml("evaluate: {sources: {ood: {zz: 1}}}"), 2, ["evaluate.sources.ood.zz"]),
    ("no layers", FILE, yaml("train: {target_modules: []}"), 2, ["train.target_modules", "at least 1"]),
    ("two documents", FILE, yaml("rounds: 1\n---\nrounds: 2\n"), 2, ["mine.yaml line 2"]),
    ("a key twice", FILE, yaml("sample: {seed: 1, seed: 2}\n"), 2, ["'seed'", "twice", "keep one"]),
    ("a list", FILE, yaml("- a\n"), 2, ["mine.yaml holds a list", "section:"]),
    ("a NUL", FILE, yaml("rounds: 1\0\n"), 2, ["mine.yaml", "not valid YAML"]),
    ("an unreadable mapping", ["--monitor.margins", "x"], nothing, 2, ["monitor.margins", "NAME=VALUE"]),
    ("a config that is a folder", ["--config", "."], nothing, 2, ["Is a directory", "--config"]),
    ("a long path", ["--config", "a" * 3000], nothing, 2, ["cannot read", "check --config"]),
    ("a key in a model's address", ["--model.name", "https://me:hf_abcdefgh@x.y/m"], nothing, 2, ["***"]),
    ("a key in a query", ["--prompts.source", "x.jsonl?token=abcdefgh"], nothing, 2, ["token=***", "log in"]),
    ("online without a key", [*RUN, "--track.mode", "online"], nothing, 2, ["WANDB_API_KEY", "offline"]),
    (
        "contradiction",
        ["--monitor.remedy", "interpolate", "--train.start_from", "base"],
        nothing,
        2,
        ["base"],
    ),
    # --- models
    ("no such model", [*FAST, "--model.name", "./none"], nothing, 2, ["./none", "check the spelling"]),
    ("no such home", [*FAST, "--model.name", "~nobody-x/y"], nothing, 2, ["~nobody-x/y"]),
    ("the Hub is away", [*FAST, "--model.name", "no/where"], nothing, 1, ["no/where", "network"]),
    (
        "a model that is a file",
        [*FAST, "--model.name", "m.gguf"],
        put("m.gguf", "x"),
        2,
        ["m.gguf", "folder"],
    ),
    ("no config.json", RUN, without("config.json"), 2, ["no config.json"]),
    ("a torn config.json", RUN, cut("config.json", 20), 1, ["config.json is not valid JSON", "restore"]),
    ("a list as config.json", RUN, put("model/config.json", "[]"), 1, ["config.json holds a list"]),
    ("no model type", RUN, changed("config.json", model_type=None), 2, ["cannot be opened", "another model"]),
    (
        "an architecture",
        RUN,
        changed("config.json", model_type="foo"),
        2,
        ["cannot be opened", "another model"],
    ),
    (
        "code of its own",
        RUN,
        changed("config.json", model_type="f", auto_map={"AutoConfig": "a.B"}),
        2,
        ["open"],
    ),
    (
        "a word as a size",
        RUN,
        changed("config.json", hidden_size="x"),
        2,
        ["cannot be opened", "hidden_size"],
    ),
    ("another size", RUN, changed("config.json", hidden_size=96), 1, ["has shape", "fetch the model again"]),
    (
        "no causal model",
        RUN,
        changed("config.json", model_type="t5"),
        2,
        ["cannot be opened", "another model"],
    ),
    ("torn weights", RUN, cut("model.safetensors", 2000), 1, ["model.safetensors is damaged", "fetch it"]),
    ("empty weights", RUN, cut("model.safetensors", 0), 1, ["model.safetensors is damaged", "fetch it"]),
    ("a cut tensor", RUN, misshapen, 1, ["has shape", "fetch the model again"]),
    ("a missing shard", RUN, unsharded, 1, ["model-00002-of-00002.safetensors is missing", "fetch it"]),
    ("a shard without a tensor", RUN, without_a_tensor, 1, ["no tensor model.norm.weight", "fetch it again"]),
    ("only a pickle", RUN, pickled, 2, ["no .safetensors weights", "convert it"]),
    ("quantised", RUN, changed("config.json", quantization_config={"a": 1}), 2, ["quantised", "unquantised"]),
    ("no tokenizer", RUN, without("tokenizer.json", "tokenizer_config.json", TEMPLATE[6:]), 2, ["tokenizer"]),
    ("a torn tokenizer", RUN, cut("tokenizer.json", 100), 1, ["tokenizer.json is not valid JSON", "restore"]),
    ("a list as tokenizer", RUN, put("model/tokenizer.json", "[]"), 1, ["tokenizer.json holds a list"]),
    ("an empty tokenizer", RUN, put("model/tokenizer.json", '{"a": 1}'), 1, ["holds no tokenizer"]),
    (
        "torn tokenizer settings",
        RUN,
        cut("tokenizer_config.json", 20),
        1,
        ["tokenizer_config.json", "restore"],
    ),
    ("no chat template", RUN, without("chat_template.jinja"), 2, ["no chat template", "instruct"]),
    ("a broken template", RUN, put(TEMPLATE, "{% for x %}"), 2, ["chat template", "mend chat_template"]),
    (
        "a template that refuses",
        RUN,
        put(TEMPLATE, "{{ raise_exception('no') }}"),
        2,
        ["chat template", "mend"],
    ),
    (
        "a template of a type",
        RUN,
        put(TEMPLATE, "{{ messages[0]['content'] + 1 }}"),
        2,
        ["chat template", "mend"],
    ),
    ("an empty template", RUN, put(TEMPLATE, ""), 2, ["writes nothing", "mend chat_template"]),
    ("a stop word", RUN, changed("generation_config.json", eos_token_id="x"), 2, ["eos_token_id = 'x'"]),
    ("a stop beyond", RUN, changed("generation_config.json", eos_token_id=9999), 2, ["9999", "vocab_size"]),
    ("torn stops", RUN, cut("generation_config.json", 5), 1, ["generation_config.json", "restore"]),
    ("a context beyond", [*RUN, "--engine.max_model_len", "4096"], nothing, 2, ["4096", "2048"]),
    ("no room", [*RUN, "--engine.max_model_len", "64"], nothing, 2, ["max_model_len 64", "raise that"]),
    ("no such layer", [*RUN, "--train.target_modules", "zz"], nothing, 2, ["zz", "q_proj", "all-linear"]),
    ("no such device", [*RUN, "--engine.device", "cuda"], nothing, 1, ["engine.device is cuda", "auto"]),
    # --- data
    ("no rows", DATA, put("rows.jsonl", ""), 2, ["rows.jsonl", "holds no prompts"]),
    (
        "a torn line",
        DATA,
        put("rows.jsonl", json.dumps(ROW) + '\n{"id"'),
        2,
        ["rows.jsonl line 2 is not JSON"],
    ),
    ("Latin-1", DATA, put("rows.jsonl", b'{"id":"a","prompt":"\xff"}\n'), 2, ["line 1", "save it as UTF-8"]),
    ("a row that is a list", DATA, rows([1]), 2, ["line 1 has no columns", "prompts.prompt_column"]),
    (
        "another column",
        DATA,
        rows({"id": "a", "text": "x"}),
        2,
        ["'prompt'", "text", "prompts.prompt_column"],
    ),
    (
        "an id twice",
        DATA,
        rows(ROW, {**ROW, "prompt": "Other."}),
        2,
        ["line 2 repeats the id 'a'", "id_column"],
    ),
    (
        "a number as prompt",
        DATA,
        rows({**ROW, "prompt": 3}),
        2,
        ["line 1 has an empty prompt", "mend the row"],
    ),
    ("a list as id", DATA, rows({**ROW, "id": [1]}), 2, ["line 1 has a list as its id", "mend the row"]),
    ("half a character", DATA, rows({**ROW, "prompt": "\ud800"}), 2, ["line 1 has half a character"]),
    ("half an id", DATA, rows({**ROW, "id": "\ud800"}), 2, ["line 1 has half a character", "id"]),
    (
        "a long prompt",
        DATA,
        rows({**ROW, "prompt": "word " * 3000}),
        2,
        ["prompt 'a' of train", "raise that"],
    ),
    ("nested rows", DATA, put("rows.jsonl", "[" * 100_000), 2, ["line 1 is not JSON"]),
    ("no row left", [*DATA, "--prompts.where", "id=b"], rows(ROW), 2, ["meets prompts.where", "'a'"]),
    ("no file", DATA, nothing, 2, ["rows.jsonl", "OWNER/NAME"]),
    ("no Parquet", TABLE, put("rows.parquet", "PAR1xxPAR1"), 2, ["rows.parquet", "not a whole Parquet file"]),
    ("damaged Parquet", TABLE, flipped, 2, ["rows.parquet", "is damaged", "write it again"]),
    ("no UTF-8 in Parquet", TABLE, parquet(pa.table({"id": ["a"], "prompt": NOT_UTF8})), 2, ["is damaged"]),
    ("Parquet's columns", TABLE, parquet([{"id": "a", "text": "x"}]), 2, ["'prompt' is no column", "text"]),
    ("an empty folder", FOLDER, lambda here: (here / "data").mkdir(), 2, ["'data'", "OWNER/NAME"]),
    ("a torn folder", FOLDER, put("data/train.jsonl", '{"id'), 2, ["'data' cannot be read", "check"]),
    ("a folder without rows", FOLDER, put("data/train.jsonl", ""), 2, ["'data'", "rows"]),
    (
        "a broken card",
        FOLDER,
        put("data/README.md", "---\na: [\n---\n"),
        2,
        ["'data' cannot be read", "check"],
    ),
    ("the Hub's data", [*RUN, "--prompts.source", "no/where"], nothing, 1, ["no/where", "network"]),
    ("no tests", [*RUN, *FILE], panel(HELD), 2, ["evaluate.sources.heldout.columns.tests", "no column"]),
    ("tests that are no text", [*RUN, *FILE], panel({**HELD, "tests": 5}), 2, ["line 1 holds a int", "mend"]),
    ("tests that are no Python", [*RUN, *FILE], panel({**HELD, "tests": "def ("}), 2, ["not Python", "mend"]),
    (
        "no number",
        [*RUN, *FILE],
        panel({**HELD, "tests": "none"}, "exact"),
        2,
        ["no answer that is a number"],
    ),
    # --- places and other commands
    ("rounds is a file", RUN, put("rounds", "x"), 1, ["rounds/default", "another folder"]),
    ("checkpoints is a file", RUN, put("checkpoints", "x"), 1, ["checkpoints/default", "another folder"]),
    ("a bad name", [*RUN, "--run", "a b"], nothing, 2, ["'a b'", "--run"]),
    ("resume from nothing", ["--resume-from", "one@1"], nothing, 2, ["'one'", "runs here: none"]),
    ("resume from a file", ["--resume-from", "f"], put("f", "x"), 2, ["'f' is no round", "RUN@ROUND"]),
    (
        "resume from rounds",
        ["--resume-from", "rounds/a/round_001"],
        put("rounds/a/round_001/x", ""),
        2,
        ["weights"],
    ),
    (
        "no composition",
        ["--resume-from", "a@1"],
        put("checkpoints/a/round_001/x", ""),
        2,
        ["composition.json"],
    ),
    (
        "a torn run",
        ["status", "a"],
        put("rounds/a/run.json", "{"),
        1,
        ["rounds/a/run.json is torn", "restore"],
    ),
    ("a deep run", ["status", "a"], put("rounds/a/run.json", "[" * 100_000), 1, ["is torn", "restore"]),
    ("report of nothing", ["report", "a"], nothing, 2, ["'a'", "runs here: none"]),
    (
        "price below nothing",
        ["report", "a", "--price-per-device-hour", "-1"],
        nothing,
        2,
        ["--price-per-device-hour", "'-1'"],
    ),
    ("compare with nothing", ["report", "a", "--compare", "b"], nothing, 2, ["'a'", "runs here: none"]),
    ("decide on nothing", ["decide", "a"], nothing, 2, ["'a'", "runs here: none"]),
    ("verify nothing", ["verify", "../a"], nothing, 2, ["'../a'", "runs here: none"]),
    ("export no round", ["export", "a"], nothing, 2, ["'a' is no round", "RUN@ROUND"]),
    ("export no number", ["export", "a@x"], nothing, 2, ["'a@x' is no round", "RUN@ROUND"]),
    ("evaluate nothing", ["evaluate", "./none"], nothing, 2, ["./none", "check the spelling"]),
    ("evaluate a stranger", ["evaluate", "model"], changed("config.json", model_type="foo"), 2, ["opened"]),
    ("laws of nothing", ["laws", "model", "./none"], nothing, 2, ["./none", "check the spelling"]),
    ("laws beyond", ["laws", "model", "model", "--top-p", "nan"], nothing, 2, ["top_p is nan", "at most 1"]),
    ("plan nothing", ["plan", "--model.name", "./none"], nothing, 2, ["./none", "check the spelling"]),
    ("sandbox a device", ["sandbox", "/dev/zero"], nothing, 2, ["/dev/zero", "Python file"]),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def here(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, signals_put_back: None) -> Path:
    """A working folder with a tiny model, and no cache, key, Hub or signal handler of others."""
    folder = tmp_path / "here"
    folder.mkdir()
    shutil.copytree(model, folder / "model")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "data")
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    sources._load.cache_clear()  # paths mean other files in every case
    return folder


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize(
    ("arguments", "prepare", "code", "parts"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    here: Path,
    arguments: list[str],
    prepare: Prepare,
    code: int,
    parts: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare(here)
    before = tree(here)
    capsys.readouterr()
    assert main(arguments) == code
    told = capsys.readouterr()
    last = told.err.splitlines()[-1]
    for part in parts:
        assert part in last
    assert 0 < len(last) <= 400
    assert "Traceback" not in told.err
    assert told.out == ""
    assert tree(here) == before


def test_the_table_is_as_long_as_the_docs_say() -> None:
    text = (Path(__file__).parent.parent / "docs" / "reliability.md").read_text()
    assert f"{len(CASES)} mistakes" in text


def test_sampling_that_runs_out_of_memory_says_what_to_lower() -> None:
    with pytest.raises(StageFailedError, match=r"lower sample\.max_new_tokens"), memory_told():
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_vllm_that_runs_out_of_memory_says_what_to_lower() -> None:
    # In torch's words.
    log = (
        "    self.model_runner.load_model(eep_scale_up=eep_scale_up)\n"
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 594.00 MiB.\n"
        "[rank0]: Warning: destroy_process_group() was not called\n"
    )
    assert "lower it, or lower engine.max_model_len" in str(explained(log, 1, 0.9))
    other = str(explained("Traceback\nValueError: no such layer\n\n", -6, 0.9))
    assert other.startswith("vLLM stopped with exit status -6: ValueError: no such layer; run again")


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_done(here: Path) -> None:
    """Root may write anywhere, so its capability to do so is dropped."""
    for name in ("rounds", "checkpoints"):
        (here / name).mkdir()
    (here / "rounds").chmod(0o555)
    before = tree(here)
    drop = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    command = [*drop, sys.executable, "-m", "ssd_loop", *RUN]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert "cannot write rounds/default: Permission denied" in done.stderr.strip().splitlines()[-1]
    assert tree(here) == before


@pytest.mark.slow
def test_a_base_with_broken_weights_is_refused_when_it_first_answers(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = here / "model" / "model.safetensors"
    tensors = load_file(path)
    next(tensor for name, tensor in tensors.items() if "mlp" in name)[0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    assert main(RUN) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "log-probs that are not finite" in last
    assert "check model.name" in last


@pytest.mark.slow
def test_nothing_left_after_filtering_is_exit_code_1(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [value if value != "empty" else "empty,stub,unparsable" for value in RUN]
    assert main(arguments) == 1
    assert "no sample is left after filtering" in capsys.readouterr().err.splitlines()[-1]
