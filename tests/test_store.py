"""Stage folders are whole or absent, whatever happens, and never reused for something else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ssd_loop import durable, store
from ssd_loop.errors import BadArtifactError, RunLockedError, SsdLoopError, StaleOutputError
from ssd_loop.store import MANIFEST, Finished, Input, Metrics

KILLED = 9
LETTERS = {"a.txt": "alpha", "below/b.txt": "beta"}


class Interrupted(Exception):
    pass


def write_letters(out: Path) -> Metrics:
    """A stage with two shards and two files."""
    for number, text in enumerate(LETTERS.values()):
        shard = out / store.SHARDS / f"{number}.json"
        if not shard.exists():
            durable.write_json(shard, text)
    for number, name in enumerate(LETTERS):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(json.loads((out / store.SHARDS / f"{number}.json").read_text()))
    return {"letters": 9, "share": 0.1}


def step(folder: Path, work: Callable[[Path], Metrics] = write_letters, **other: Any) -> Finished:
    asked: dict[str, Any] = {
        "stage": "sample",
        "round_index": 1,
        "version": 1,
        "settings": {"temperature": 1.0},
        "inputs": {"model": Input("f" * 64), "prompts": Input("e" * 64, "d" * 64)},
    }
    return store.step(folder, **{**asked, **other}, work=work)


def never(out: Path) -> Metrics:
    raise AssertionError("finished work was done again")


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a restart: nothing on disk is trusted."""
    monkeypatch.setattr(store, "_trusted", set())


def test_a_finished_folder_holds_its_files_and_a_manifest(tmp_path: Path) -> None:
    done = step(tmp_path / "run" / "sample")
    assert done.path == tmp_path / "run" / "sample"
    assert sorted(tree(done.path)) == ["a.txt", "below/b.txt", MANIFEST]
    assert os.listdir(tmp_path / "run") == ["sample"]
    data = json.loads((done.path / MANIFEST).read_text())
    assert set(data) == {"stage", "round", "fingerprint", "inputs", "outputs", "metrics", "self_sha256"}
    assert data["inputs"]["prompts"] == {"fingerprint": "e" * 64, "manifest_sha256": "d" * 64}
    assert data["outputs"]["a.txt"] == {"bytes": 5, "sha256": durable.sha256_file(done.path / "a.txt")}
    assert data["metrics"] == {"letters": 9, "share": 0.1}


def test_the_same_work_gives_the_same_bytes_anywhere(tmp_path: Path) -> None:
    assert tree(step(tmp_path / "one").path) == tree(step(tmp_path / "two" / "deeper").path)


def test_finished_work_is_skipped(tmp_path: Path) -> None:
    first = step(tmp_path / "sample")
    assert step(tmp_path / "sample", never) == first


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"inputs": {"model": Input("0" * 64), "prompts": Input("e" * 64, "d" * 64)}}, "model"),
        ({"inputs": {"model": Input("f" * 64), "prompts": Input("e" * 64, "0" * 64)}}, "prompts"),
        ({"inputs": {"model": Input("f" * 64)}}, "prompts"),
        ({"settings": {"temperature": 1.6}}, "settings"),
        ({"version": 2}, "version"),
        ({"round_index": 2}, "sample"),
    ],
)
def test_other_settings_or_inputs_are_refused_by_name(
    tmp_path: Path, other: dict[str, Any], named: str
) -> None:
    before = tree(step(tmp_path / "sample").path)
    with pytest.raises(StaleOutputError, match=named) as caught:
        step(tmp_path / "sample", never, **other)
    assert str(tmp_path / "sample") in str(caught.value)
    assert "--run" in str(caught.value)
    assert tree(tmp_path / "sample") == before


def test_an_unfinished_attempt_with_other_settings_is_refused(tmp_path: Path) -> None:
    def fail(out: Path) -> Metrics:
        write_letters(out)
        raise Interrupted

    with pytest.raises(Interrupted):
        step(tmp_path / "sample", fail)
    before = tree(tmp_path / "sample.partial")
    with pytest.raises(StaleOutputError, match=r"sample\.partial"):
        step(tmp_path / "sample", never, settings={"temperature": 2.0})
    assert tree(tmp_path / "sample.partial") == before


def test_a_failed_attempt_publishes_nothing_and_keeps_its_shards(tmp_path: Path) -> None:
    def fail(out: Path) -> Metrics:
        durable.write_json(out / store.SHARDS / "0.json", LETTERS["a.txt"])
        (out / "half.txt").write_text("half")
        raise Interrupted

    with pytest.raises(Interrupted):
        step(tmp_path / "sample", fail)
    assert not (tmp_path / "sample").exists()
    seen: list[str] = []

    def look(out: Path) -> Metrics:
        seen.extend(sorted(tree(out)))
        return write_letters(out)

    assert tree(step(tmp_path / "sample", look).path) == tree(step(tmp_path / "unbroken").path)
    assert seen == [store.IN_PROGRESS, f"{store.SHARDS}/0.json"]


@pytest.mark.parametrize(
    "name", ["notes.txt", "folder/inside.txt", "fingerprint.json.tmp", "manifest.json.tmp"]
)
def test_foreign_files_in_an_unfinished_folder_are_not_published(tmp_path: Path, name: str) -> None:
    def fail(out: Path) -> Metrics:
        raise Interrupted

    with pytest.raises(Interrupted):
        step(tmp_path / "sample", fail)
    foreign = tmp_path / "sample.partial" / name
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("foreign")
    done = step(tmp_path / "sample")
    assert tree(done.path) == tree(step(tmp_path / "unbroken").path)


@pytest.mark.parametrize("claim", [None, b"", b'{"finger', b"[]", b"null", b"3", b"\xff"])
def test_an_unfinished_folder_without_a_readable_claim_starts_afresh(
    tmp_path: Path, claim: bytes | None
) -> None:
    shard = tmp_path / "sample.partial" / store.SHARDS / "0.json"
    shard.parent.mkdir(parents=True)
    shard.write_text('"of who knows what"')
    if claim is not None:
        (tmp_path / "sample.partial" / store.IN_PROGRESS).write_bytes(claim)
    assert tree(step(tmp_path / "sample").path) == tree(step(tmp_path / "unbroken").path)


def test_a_link_in_an_unfinished_folder_is_removed_but_not_what_it_points_at(tmp_path: Path) -> None:
    (tmp_path / "sample.partial").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("keep")
    (tmp_path / "sample.partial" / "link").symlink_to(tmp_path / "precious")
    step(tmp_path / "sample")
    assert (tmp_path / "precious" / "file").read_text() == "keep"


def dies_at(change: int, work: Callable[[], object]) -> bool:
    """Do some work in a forked process that dies before its n-th change on disk; whether it died."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            # Opening a file or folder counts too: it stands for its creation and for every fsync.
            if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
                seen += 1
                if seen == change:
                    os._exit(KILLED)

        sys.addaudithook(count)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, KILLED)
    return status == KILLED


def test_a_kill_at_any_change_on_disk_leaves_a_folder_whole_or_absent(tmp_path: Path) -> None:
    whole = tree(step(tmp_path / "unbroken").path)
    change = 0
    while True:
        change += 1
        folder = tmp_path / str(change) / "sample"
        died = dies_at(change, partial(step, folder))
        if folder.exists():
            assert tree(folder) == whole, f"killed at change {change}"
        unfinished = folder.with_name("sample.partial")
        manifest_was_whole = (unfinished / MANIFEST).exists() or folder.exists()
        done = step(folder, never if manifest_was_whole else write_letters)
        assert tree(done.path) == whole, f"killed at change {change}"
        assert os.listdir(folder.parent) == ["sample"]
        if not died:
            break
    assert change > 20  # the hook saw the stage at work


def letters_again(out: Path) -> None:
    (out / "a.txt").write_text("alpha")


def do(what: str, done: Finished, other: Path) -> None:
    if what == "prune":
        store.prune(done, ["a.txt"])
    elif what == "restore":
        store.restore(done, letters_again)
    else:
        store.copy_finished(done, other)


@pytest.mark.parametrize("what", ["prune", "restore", "copy"])
def test_a_kill_while_pruning_restoring_or_copying_damages_nothing(tmp_path: Path, what: str) -> None:
    def begin(name: str) -> tuple[Finished, Path]:
        done = step(tmp_path / name / "sample")
        if what == "restore":
            store.prune(done, ["a.txt"])
        return done, tmp_path / name / "copy"

    done, other = begin("unbroken")
    do(what, done, other)
    whole = tree(done.path.parent)
    change = 0
    while True:
        change += 1
        done, other = begin(str(change))
        died = dies_at(change, partial(do, what, done, other))
        assert list(store.damages(done, store.pruned(done))) == [], f"killed at change {change}"
        if store.finished(other):
            assert tree(other) == tree(done.path), f"killed at change {change}"
        if what != "restore" or store.pruned(done):
            do(what, done, other)
        left = {name: data for name, data in tree(done.path.parent).items() if ".partial" not in name}
        assert left == whole, f"killed at change {change}"
        if not died:
            break
    assert change > 3


def test_a_pruned_file_is_told_from_a_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = step(tmp_path / "sample")
    assert store.pruned(done) == ()
    store.prune(done, ["a.txt"])
    assert store.pruned(done) == ("a.txt",)
    assert not (done.path / "a.txt").exists()
    assert store.finished(done.path) == done
    forget(monkeypatch)
    with pytest.raises(BadArtifactError, match=r"a\.txt is missing"):
        store.checked(done)
    store.restore(done, letters_again)
    assert store.checked(done) == done.path
    assert os.listdir(tmp_path) == ["sample"]


def test_what_is_restored_must_be_what_was_recorded(tmp_path: Path) -> None:
    done = step(tmp_path / "sample")
    store.prune(done, ["a.txt"])
    with pytest.raises(
        BadArtifactError, match=r"a\.txt was rebuilt and differs from its recorded hash.*--run"
    ):
        store.restore(done, lambda out: (out / "a.txt").write_text("omega"))
    assert store.pruned(done) == ("a.txt",)


@pytest.mark.parametrize("text", ["", "{", '{"files": ["a.txt"]}', '{"files": ["c.txt"]}'], ids=repr)
def test_a_torn_note_of_pruning_is_found(tmp_path: Path, text: str) -> None:
    done = step(tmp_path / "sample")
    (done.path / store.PRUNED).write_text(text)
    with pytest.raises(BadArtifactError, match=r"pruned\.json is torn"):
        store.pruned(done)


def test_a_copy_is_whole_and_another_result_is_not_replaced(tmp_path: Path) -> None:
    done = step(tmp_path / "sample")
    copy = store.copy_finished(done, tmp_path / "copy")
    assert (copy.manifest_sha256, tree(copy.path)) == (done.manifest_sha256, tree(done.path))
    other = step(tmp_path / "other", settings={"temperature": 2.0})
    with pytest.raises(StaleOutputError, match="no copy of"):
        store.copy_finished(other, tmp_path / "copy")


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fill(name: str) -> None:
        with store.whole_folder(tmp_path / "new") as folder:
            (folder / "a").write_text("a")
            (folder / name).rename(folder / "b")

    with pytest.raises(FileNotFoundError):
        fill("nothing")
    assert list(tmp_path.iterdir()) == []
    fill("a")
    assert tree(tmp_path) == {"new/b": b"a"}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"stage": "sample"}', "\x00\x00"], ids=repr)
def test_a_torn_manifest_is_found(tmp_path: Path, text: str) -> None:
    done = step(tmp_path / "sample")
    (done.path / MANIFEST).write_text(text)
    with pytest.raises(BadArtifactError, match=r"manifest\.json is torn"):
        step(tmp_path / "sample", never)


@pytest.mark.parametrize("key", ["stage", "round", "fingerprint", "inputs", "outputs", "metrics"])
def test_an_altered_manifest_is_found(tmp_path: Path, key: str) -> None:
    path = step(tmp_path / "sample").path / MANIFEST
    data = json.loads(path.read_text())
    data[key] = {} if isinstance(data[key], dict) else 7
    path.write_text(json.dumps(data))
    with pytest.raises(BadArtifactError, match="was altered"):
        store.finished(tmp_path / "sample")


def test_a_folder_without_a_manifest_is_not_taken_for_finished(tmp_path: Path) -> None:
    (tmp_path / "sample").mkdir()
    with pytest.raises(BadArtifactError, match=MANIFEST):
        step(tmp_path / "sample", never)


@pytest.mark.parametrize("damage", ["altered", "longer", "missing", "folder"])
def test_damaged_output_is_found_before_it_is_used(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = step(tmp_path / "sample")
    path = done.path / "a.txt"
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_text({"altered": "alphA", "longer": "alphabet"}[damage])
    forget(monkeypatch)
    with pytest.raises(BadArtifactError, match=str(path)):
        store.checked(done)


def test_whole_output_is_hashed_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = step(tmp_path / "sample")
    forget(monkeypatch)
    assert store.checked(done) == done.path
    (done.path / "a.txt").write_text("later change")
    assert store.checked(done) == done.path


def test_fingerprints_depend_on_everything_that_matters() -> None:
    def of(**other: Any) -> str:
        asked: dict[str, Any] = {
            "stage": "s",
            "round_index": 1,
            "version": 1,
            "settings": {"a": 1, "b": 2},
            "inputs": {"x": Input("1"), "y": Input("2")},
        }
        return store.fingerprint(**{**asked, **other})

    changed = [
        {"stage": "t"},
        {"round_index": 2},
        {"version": 2},
        {"settings": {"a": 2, "b": 2}},
        {"settings": {"a": 1}},
        {"inputs": {"x": Input("3"), "y": Input("2")}},
        {"inputs": {"y": Input("1"), "x": Input("2")}},
    ]
    assert len({of(), *(of(**other) for other in changed)}) == len(changed) + 1
    assert of(settings={"b": 2, "a": 1}) == of()


def test_numbers_that_json_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        durable.sha256_json({"loss": float("nan")})


def test_a_log_line_is_appended(tmp_path: Path) -> None:
    durable.append_jsonl(tmp_path / "log.jsonl", {"b": 1, "a": 2})
    durable.append_jsonl(tmp_path / "log.jsonl", {"c": 3})
    assert (tmp_path / "log.jsonl").read_text() == '{"a": 2, "b": 1}\n{"c": 3}\n'


def test_a_link_is_relative_and_replaced(tmp_path: Path) -> None:
    for name in ("round_000", "round_001", "round_001"):
        (tmp_path / name).mkdir(exist_ok=True)
        durable.point_link(tmp_path / "best", name)
        assert os.readlink(tmp_path / "best") == name
    assert sorted(os.listdir(tmp_path)) == ["best", "round_000", "round_001"]


HOLD = """
import sys, time
from pathlib import Path
from ssd_loop.store import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_writer_is_refused_and_let_in_after_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "rounds" / "mine"
    with holder(folder) as other:
        with pytest.raises(RunLockedError, match="mine") as caught, store.run_lock(folder):
            pass
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2
        other.send_signal(signal.SIGKILL)
        other.wait()
        with store.run_lock(folder):
            pass


def test_a_lock_is_not_shared_within_a_process(tmp_path: Path) -> None:
    with store.run_lock(tmp_path / "mine"), pytest.raises(RunLockedError), store.run_lock(tmp_path / "mine"):
        pass


def test_runs_do_not_lock_each_other(tmp_path: Path) -> None:
    with store.run_lock(tmp_path / "one"), store.run_lock(tmp_path / "two"):
        pass


def test_nothing_is_left_when_nothing_was_begun(tmp_path: Path) -> None:
    with pytest.raises(Interrupted), store.run_lock(tmp_path / "rounds" / "mine"):
        raise Interrupted
    assert os.listdir(tmp_path) == []


def test_nothing_of_others_is_removed_when_nothing_was_begun(tmp_path: Path) -> None:
    (tmp_path / "rounds" / "older").mkdir(parents=True)
    with pytest.raises(Interrupted), store.run_lock(tmp_path / "rounds" / "mine"):
        raise Interrupted
    assert os.listdir(tmp_path / "rounds") == ["older"]


def test_a_begun_run_stays(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    with store.run_lock(folder):
        durable.write_json(folder / "run.json", {})
    assert (folder / "run.json").exists()
    with store.run_lock(folder):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "rounds").write_text("a file")
    with pytest.raises(SsdLoopError, match="rounds") as caught, store.run_lock(tmp_path / "rounds" / "mine"):
        pass
    assert caught.value.exit_code == 1
