"""Weights & Biases: each round once, also over a restart, and never in the way of the training."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from ssd_loop.config import RunConfig, TrackConfig
from ssd_loop.errors import ConfigError
from ssd_loop.tracking import Mode, Tracker, has_key, resolve_mode

BLOCK, HEADER = 32768, 7  # W&B keeps records in LevelDB's log format, after a 7-byte file header
LAST_KINDS = (1, 4)  # a whole record, or the last part of one


@pytest.fixture(autouse=True)
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a netrc and an environment without a key."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "NETRC", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def netrc(path: Path, host: str) -> Path:
    path.write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")
    path.chmod(0o600)
    return path


def test_auto_is_offline_without_a_key() -> None:
    assert not has_key()
    assert resolve_mode(TrackConfig()) == "offline"


def test_auto_is_online_with_a_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert resolve_mode(TrackConfig()) == "online"
    assert resolve_mode(TrackConfig(mode="online")) == "online"
    assert resolve_mode(TrackConfig(mode="offline")) == "offline"


def test_an_empty_key_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert not has_key()


def test_a_key_in_netrc_counts(no_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc(no_key / ".netrc", "api.wandb.ai")
    assert resolve_mode(TrackConfig()) == "online"
    monkeypatch.setenv("NETRC", str(no_key / "nowhere"))
    assert not has_key()
    monkeypatch.setenv("NETRC", str(netrc(no_key / "other", "example.org")))
    assert not has_key()


def test_a_broken_netrc_is_no_key(no_key: Path) -> None:
    (no_key / ".netrc").write_text("machine\nnonsense here")
    assert resolve_mode(TrackConfig()) == "offline"


def test_online_without_a_key_is_refused_with_the_ways_on() -> None:
    with pytest.raises(ConfigError, match="WANDB_API_KEY") as caught:
        resolve_mode(TrackConfig(mode="online"))
    assert "--track.mode offline" in str(caught.value)


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_mode_that_was_asked_for_stays(mode: Mode) -> None:
    assert resolve_mode(TrackConfig(mode=mode)) == mode


def tracker(folder: Path, mode: Mode = "offline") -> Tracker:
    folder.mkdir(exist_ok=True)
    return Tracker(mode, RunConfig(), "mine", "abcdef123456", folder)


def log_rounds(one: Tracker, rounds: range) -> None:
    for n in rounds:
        if n:
            one.log(n, "sample", {"tokens": 100 + n, "note": "not a number"})
        one.log(n, "evaluate", {"heldout_pass_at_1": n / 10})
        if n:
            one.log(n, "monitor", {"best_round": n, "verdict": "continue"})


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    one = tracker(tmp_path / "run", "disabled")
    log_rounds(one, range(2))
    one.close(0)
    assert list((tmp_path / "run").iterdir()) == []


def test_what_breaks_in_tracking_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = tracker(tmp_path / "run")
    (tmp_path / "run" / "wandb").write_text("a file where W&B wants a folder")
    with caplog.at_level(logging.WARNING):
        log_rounds(one, range(3))
        one.close(0)
    assert len(caplog.records) == 1
    assert "the run goes on" in caplog.text


def test_closing_before_anything_was_sent_is_quiet(tmp_path: Path) -> None:
    tracker(tmp_path / "run").close(1)
    assert list((tmp_path / "run").iterdir()) == []


def records(path: Path) -> list[bytes]:
    """The records of one W&B file."""
    data, found, at = path.read_bytes(), [b""], HEADER
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # the end of a block that is too short for a record
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        found[-1] += data[at + HEADER : at + HEADER + size]
        if kind in LAST_KINDS:
            found.append(b"")
        at += HEADER + size
    return found[:-1]


def history(folder: Path) -> list[dict[str, float]]:
    """Every row of metrics that W&B would upload, without its own columns."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for path in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        for raw in records(path):
            record = Record.FromString(raw)
            if record.WhichOneof("record_type") == "history":
                items = {
                    item.key or item.nested_key[0]: json.loads(item.value_json)
                    for item in record.history.item
                }
                rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows


@pytest.mark.slow
def test_every_round_is_logged_once_over_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = tracker(folder)
    log_rounds(first, range(2))
    first.log(2, "sample", {"tokens": 102})
    first.close(1)  # killed in round 2: the loop goes through the finished stages again
    time.sleep(1.1)  # W&B names folders by the second, and a restart takes longer than that
    second = tracker(folder)
    log_rounds(second, range(3))
    second.close(0)
    assert history(folder) == [
        {"round": 0, "evaluate/heldout_pass_at_1": 0.0},
        {"round": 1, "sample/tokens": 101.0, "evaluate/heldout_pass_at_1": 0.1, "monitor/best_round": 1.0},
        {"round": 2, "sample/tokens": 102.0, "evaluate/heldout_pass_at_1": 0.2, "monitor/best_round": 2.0},
    ]
    runs = list((folder / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    assert all("-abcdef123456" in run.name for run in runs)  # a suffix where two began in one second


@pytest.mark.slow
def test_a_finished_run_starts_no_tracking_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for _ in range(2):
        one = tracker(folder)
        log_rounds(one, range(2))
        one.close(0)
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.slow
def test_a_server_that_does_not_answer_means_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("ssd_loop.tracking.INIT_TIMEOUT_S", 10)
    one = tracker(tmp_path, "online")
    log_rounds(one, range(2))
    one.close(0)
    assert one.mode == "offline"
    assert "cannot be reached" in caplog.text
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1
