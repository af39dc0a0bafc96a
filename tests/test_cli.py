"""The command line as users and scripts meet it: exit codes, one clear sentence, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

import ssd_loop
from ssd_loop.cli import main

ROOT = Path(ssd_loop.__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals_put_back: None) -> Path:
    """An empty working folder, no W&B key, and the signal handlers put back afterwards."""
    folder, home = tmp_path / "here", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(home))
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    return folder


def refusal(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int = 2) -> str:
    """The last line of standard error, after checking what holds for every refusal."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    last = captured.err.splitlines()[-1]
    assert 0 < len(last) <= 400
    assert os.listdir() == []
    return last


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["frobnicate"], ["frobnicate", "status"]),
        (["--rounds", "0"], ["rounds", "'0'", "--rounds"]),
        (["--rounds", "many"], ["rounds", "'many'", "--rounds"]),
        (["--rounds"], ["--rounds", "--help"]),
        (["--sample.temprature", "1"], ["--sample.temprature"]),
        (["--sample.temp", "1"], ["--sample.temp"]),
        (["--sample.temperature", "hot"], ["sample.temperature", "'hot'", "flag"]),
        (["run", "--train.learning_rate", "-1"], ["train.learning_rate", "-1"]),
        (["--filter.filters", "raw,shiny"], ["filter.filters", "shiny"]),
        (["--evaluate.panels", "probe"], ["heldout"]),
        (["--evaluate.panels", "[heldout"], ["--help"]),
        (["--sample.max_new_tokens", "9000"], ["9000", "max_model_len"]),
        (["--filter.filters", "does_not_run", "--sandbox.execute", "false"], ["sandbox.execute"]),
        (["--train.max_grad_norm", "inf"], ["train.max_grad_norm", "inf"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--run", "../elsewhere"], ["../elsewhere", "--run"]),
        (["--run", ".hidden"], [".hidden"]),
        (["--run", "a" * 65], ["aaa", "64"]),
        (["--run", "a b"], ["'a b'"]),
        (["--run", "", "--model.name", "./nowhere"], ["''", "--run"]),
        (["--run", "line\nbreak"], ["--run"]),
        (["--prompts.source", "nowhere.jsonl"], ["nowhere.jsonl"]),
        (["--track.mode", "online"], ["WANDB_API_KEY", "offline"]),
        (["status"], ["no run"]),
        (["status", "mine"], ["'mine'"]),
        (["status", "--frob"], ["--frob"]),
        (["sandbox"], ["FILE"]),
        (["sandbox", "nowhere.py"], ["nowhere.py"]),
        (["sandbox", "."], ["'.'"]),
        (["evaluate"], ["MODEL"]),
        (["evaluate", "model", "--train.epochs", "1"], ["--train.epochs"]),
        (["evaluate", "model", "--out", "."], ["--out"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_a_mistake_is_one_sentence_with_exit_code_2(
    arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    last = refusal(capsys, arguments)
    for part in parts:
        assert part in last


def test_a_flag_with_a_short_value_still_names_itself(capsys: pytest.CaptureFixture[str]) -> None:
    last = refusal(capsys, ["--sample.top_p", "1.5", "--sample.top_k", "3"])
    assert "sample.top_p = '1.5' (from flag --sample.top_p)" in last


def test_the_run_is_named_after_its_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "my config.yaml"
    config.write_text("rounds: 1\n")
    assert "'my config'" in refusal(capsys, ["--config", str(config)])


def test_a_place_that_cannot_be_written_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    Path("rounds").write_text("a file, not a folder")
    assert main(["--rounds", "1", "--track.mode", "disabled"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "rounds/default" in last
    assert os.listdir() == ["rounds"]


def strict(text: str) -> dict[str, object]:
    """JSON without NaN or Infinity, on one line."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(name)

    assert text.count("\n") == 1
    data: dict[str, object] = json.loads(text, parse_constant=refuse)
    return data


@pytest.mark.parametrize(
    ("source", "outcome"),
    [
        (b"print('h\xc3\xa4llo')\n", "passed"),
        (b"raise SystemExit(3)\n", "failed"),
        (b"import sys\nsys.exit(0)\n", "crashed"),
        (b"import sys\nsys.stdout.buffer.write(bytes(range(256)))\n", "passed"),
        (b"def broken(:\n", "failed"),
        (b"", "passed"),
        (b"import os\nos.kill(os.getpid(), 9)\n", "crashed"),
    ],
)
def test_sandbox_prints_one_line_of_strict_json(
    source: bytes, outcome: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "program.py").write_bytes(source)
    assert main(["sandbox", str(tmp_path / "program.py")]) == 0
    found = strict(capsys.readouterr().out)
    assert found["outcome"] == outcome
    assert found["isolation"] == "bubblewrap"
    assert isinstance(found["seconds"], float)
    assert os.listdir() == []


def test_help_and_version_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, part in (
        (["--help"], "exit codes"),
        (["run", "--help"], "--sample.temperature"),
        (["--version"], ssd_loop.__version__),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        captured = capsys.readouterr()
        assert part in captured.out
        assert captured.err == ""


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ssd_loop", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_as_a_process_the_exit_code_is_the_same() -> None:
    process = start("frobnicate")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == ""
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_is_exit_code_130_and_leaves_no_child(sent: signal.Signals, tmp_path: Path) -> None:
    mark = f"ssd-loop-test-{os.getpid()}-{sent.name}"
    (tmp_path / "sleeps.py").write_text(f"import time\ntime.sleep(50)  # {mark}\n")
    process = start("sandbox", str(tmp_path / "sleeps.py"))
    deadline = time.monotonic() + 60
    while not children_of(process.pid) and time.monotonic() < deadline:  # a busy machine takes seconds
        time.sleep(0.1)
    process.send_signal(sent)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1
    assert children_of(process.pid) == []


def children_of(pid: int) -> list[int]:
    """Processes whose session or parent is that of an ended process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if pid in (int(fields[1]), int(fields[3])):
            found.append(int(stat.parent.name))
    return found


def test_a_closed_pipe_is_no_traceback() -> None:
    process = start("run", "--help")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.wait(timeout=60)
    process.stderr.close()
    assert "Traceback" not in err
