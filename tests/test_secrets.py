"""Keys reach no file and no sentence; nothing pickled is loaded and no code of others is run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ssd_loop
from ssd_loop.secret import has_secret, without_secrets
from tests.runs import ssd_loop as command
from tests.runs import tiny_config

PACKAGE = Path(ssd_loop.__file__).parent
CANARY = "canary-0f3b6a91-never-written"


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Every call of a function or method of that name in the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "attr", getattr(node.func, "id", "")) == name
            ):
                found.append((f"{path.name}:{node.lineno}", node))
    return found


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(k.value) for k in call.keywords if k.arg == name), None)


def test_models_are_loaded_from_safetensors_and_without_their_code() -> None:
    loads = calls("from_pretrained")
    assert len(loads) > 5
    for place, call in loads:
        if any(k.arg is None for k in call.keywords):
            continue  # the packaged GGUF, which holds no code
        assert keyword(call, "trust_remote_code") is False, place
        if "AutoModel" in ast.unparse(call.func):
            assert keyword(call, "use_safetensors") is True, place
    for place, call in calls("from_config"):
        assert keyword(call, "trust_remote_code") is False, place


def test_nothing_pickled_is_loaded() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert imported.isdisjoint({"pickle", "joblib", "dill", "cloudpickle", "shelve"}), path
        if path.parent.name != "sandbox":  # there it goes from the host to the program, never back
            assert "marshal" not in imported, path
        assert "allow_pickle" not in path.read_text(encoding="utf-8"), path
    assert [
        place for place, call in calls("load") if ast.unparse(call.func) in ("torch.load", "np.load")
    ] == []


@pytest.mark.parametrize(
    ("address", "is_secret"),
    [
        ("https://me:hf_key@host/m", True),
        ("https://hf_key@host/m", True),
        ("rows.jsonl?token=abc", True),
        ("s3://b/x?a=1&api_key=abc", True),
        ("OWNER/NAME@main", False),
        ("hf://datasets/OWNER/NAME@refs/convert/parquet/x.jsonl", False),
        ("a/b?c=d", False),
    ],
)
def test_addresses_with_keys_are_known(address: str, is_secret: bool) -> None:
    assert has_secret(address) is is_secret


def test_keys_are_starred() -> None:
    text = f"cannot reach https://me:pw@host/x?token=abc&a=1 with {CANARY}; try again"
    assert without_secrets(text, {"MY_TOKEN": CANARY, "HOME": "cannot reach"}) == (
        "cannot reach https://***@host/x?token=***&a=1 with ***; try again"
    )


def test_warnings_of_libraries_show_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", CANARY)
    code = (
        "import logging, os; from ssd_loop.cli import main; main(['verify', 'none'])\n"
        "logging.getLogger('urllib3').warning('retrying with %s', os.environ['MY_TOKEN'])"
    )
    done = command(cwd=tmp_path, program=("-c", code))
    assert done.returncode == 0
    assert "WARNING: retrying with ***" in done.stderr
    assert CANARY not in done.stderr


@pytest.mark.slow
def test_keys_in_the_environment_reach_no_file(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "MY_SECRET", "DB_PASSWORD"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tiny_config(tmp_path, tiny_llama, "transformers", track={"mode": "offline"})
    done = command("--config", config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout + done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
