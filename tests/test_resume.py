"""Every round can be trusted, gone on from, forked and handed on: real runs on both tiny families."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ssd_loop import durable, store
from ssd_loop.composition import read
from ssd_loop.place import Place
from ssd_loop.records import Sample, read_rows
from tests.runs import ssd_loop, tiny_config, tree
from tests.test_merging import peft_sum

pytestmark = pytest.mark.slow


def run(*arguments, cwd: Path, code: int = 0):
    done = ssd_loop(*arguments, cwd=cwd)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def last(done) -> str:
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def finished(request, tmp_path_factory) -> Path:
    """A finished run of three rounds that keeps one merged model besides the best; not to be changed."""
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copytree(request.getfixturevalue(f"tiny_{request.param}"), folder / "model")
    tiny_config(folder, folder / "model", "transformers", merge={"keep_last": 1}, rounds=3)
    run("--config", "tiny.yaml", cwd=folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy of the finished run; its base stays where it was."""
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy, symlinks=True)
    return copy


def merged(folder: Path, n: int, name: str = "tiny") -> Path:
    return folder / f"checkpoints/{name}/round_{n:03d}/merged"


def adapters(folder: Path, name: str = "tiny") -> list[Path]:
    return [folder / f"checkpoints/{name}/round_{n:03d}/adapter" for n in (1, 2, 3)]


def test_round_3_is_base_plus_three_adapters(finished):
    exact = peft_sum(finished / "model", adapters(finished))
    before = load_file(finished / "model/model.safetensors")
    changed = 0
    for name, tensor in load_file(merged(finished, 3) / "model.safetensors").items():
        if "_proj" not in name:
            assert torch.equal(tensor, before[name]), name
            continue
        step = 2.0**-7 * 2.0 ** torch.floor(torch.log2(exact[name].abs().clamp_min(2.0**-100)))
        assert ((tensor.float() - exact[name]).abs() / step).max() < 1.01, name
        changed += 1
    assert changed == 14
    assert len(read(finished / "checkpoints/tiny/round_003").adapters) == 3


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 60).unsqueeze(0)).logits[0].float()


def test_the_exported_adapter_on_the_base_is_round_3(finished, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    done = run("export", "tiny@3", "--adapter", "--out", tmp_path / "one", cwd=finished)
    assert done.stdout.strip() == str(tmp_path / "one")
    assert {f.name for f in (tmp_path / "one").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    base = AutoModelForCausalLM.from_pretrained(finished / "model", dtype=torch.float32)
    start = logits(base)
    exact = AutoModelForCausalLM.from_pretrained(finished / "model", dtype=torch.float32)
    exact.load_state_dict(peft_sum(finished / "model", adapters(finished)))
    wanted = logits(exact)
    got = logits(PeftModel.from_pretrained(base, tmp_path / "one"))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - start).abs().max() > 0.1  # the rounds did something
    written = logits(AutoModelForCausalLM.from_pretrained(merged(finished, 3), dtype=torch.float32))
    slope = torch.dot((written - start).flatten(), (got - start).flatten()) / (got - start).square().sum()
    assert slope == pytest.approx(1.0, abs=0.1)


def test_the_exported_model_is_the_round_and_says_how_it_was_made(finished, tmp_path):
    for n in (1, 3):  # pruned, and whole
        out = tmp_path / f"round_{n}"
        run("export", f"tiny@{n}", "--out", out, cwd=finished)
        recorded = store.finished(merged(finished, n)).manifest.outputs["model.safetensors"]["sha256"]
        assert durable.sha256_file(out / "model.safetensors") == recorded
        text = (out / "README.md").read_text()
        assert "temperature 1.0" in text
        assert "heldout_pass_at_1" in text
        assert yaml.safe_load(text.split("---")[1])["library_name"] == "transformers"
    refused = run("export", "tiny@3", "--out", tmp_path / "round_3", cwd=finished, code=2)
    assert "--out" in last(refused)


def test_old_merged_models_are_pruned_and_the_rest_is_whole(finished):
    assert not (merged(finished, 1) / "model.safetensors").exists() or best(finished) == "round_001"
    assert (merged(finished, 3) / "model.safetensors").exists()
    assert all((adapter / "adapter_model.safetensors").exists() for adapter in adapters(finished))
    done = run("verify", "tiny", cwd=finished)
    assert "as they were made" in done.stdout
    assert "0 unfinished" in done.stdout


def best(folder: Path) -> str:
    return os.readlink(folder / "checkpoints/tiny/best")


def test_a_pruned_model_is_rebuilt_to_its_recorded_hash(folder):
    """Rounds 2 and 3 are lost; going on needs round 1's weights, which were pruned."""
    before = tree(folder)
    for top in ("rounds", "checkpoints"):
        for n in (2, 3):
            shutil.rmtree(folder / top / "tiny" / f"round_{n:03d}")
    (merged(folder, 1) / "model.safetensors").unlink(missing_ok=True)
    recorded = store.finished(merged(folder, 1))
    store.prune(recorded, ["model.safetensors"])
    done = run("--config", "tiny.yaml", cwd=folder)
    assert "rebuilt from its adapters" in done.stderr
    assert tree(folder) == before


def test_a_flipped_bit_in_an_old_adapter_is_found_before_it_is_used(folder):
    file = adapters(folder)[0] / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    refused = run("--config", "tiny.yaml", "--rounds", 4, cwd=folder, code=1)
    assert "round_001/adapter/adapter_model.safetensors was altered" in last(refused)
    assert not (folder / "rounds/tiny/round_004").exists()  # before anything was drawn
    assert run("verify", "tiny", cwd=folder, code=1).stdout.splitlines() == [
        "checkpoints/tiny/round_001/adapter/adapter_model.safetensors: was altered"
    ]
    for what in (["export", "tiny@1", "--out", "out"], ["--resume-from", "tiny@3", "--run", "fork"]):
        assert "round_001/adapter" in last(run(*what, cwd=folder, code=1))
    assert not (folder / "out").exists()


def test_a_fork_and_its_parent_both_finish_and_the_fork_outlives_it(folder):
    before = tree(folder)
    command = ["--resume-from", "tiny@2", "--run", "hot", "--sample.temperature", "1.6"]
    done = run(*command, "--rounds", 3, cwd=folder)
    assert "sample.temperature: 1.0 -> 1.6" in done.stderr
    assert {name: value for name, value in tree(folder).items() if "/tiny/" in name} == before
    about = Place(folder, "hot").about()
    assert (about["parent"]["run"], about["parent"]["round"], about["start"]) == ("tiny", 2, 2)
    rows = read_rows(folder / "rounds/hot/round_003/sample/samples.parquet", Sample)
    assert {row.policy_round for row in rows} == {2}
    assert not (folder / "rounds/hot/round_001/sample").exists()
    parts = [part.path for part in read(folder / "checkpoints/hot/round_003").adapters]
    assert parts == [f"../round_00{n}/adapter" for n in (1, 2, 3)]

    run("--config", "tiny.yaml", "--rounds", 4, cwd=folder)  # the parent goes on
    for top in ("rounds", "checkpoints"):
        shutil.rmtree(folder / top / "tiny")
    run(*command, "--rounds", 4, cwd=folder)  # the same command, though what it names is gone
    assert merged(folder, 4, "hot").is_dir()
    assert "as they were made" in run("verify", "hot", cwd=folder).stdout
    status = run("status", "hot", cwd=folder).stdout
    assert "started from tiny@2: sample.temperature: 1.0 -> 1.6" in status
    run("export", "hot@1", "--out", "old", cwd=folder)  # a round of the deleted parent
    assert (folder / "old/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--evaluate.panels", "heldout"], "evaluate.panels"),
        (["--evaluate.limit", "4"], "evaluate.limit: 8 -> 4"),
        (["--merge.rounding", "nearest"], "merge.rounding"),
    ],
)
def test_a_fork_that_is_measured_otherwise_is_refused(finished, flags, named):
    before = tree(finished)
    refused = run("--resume-from", "tiny@2", "--run", "other", *flags, cwd=finished, code=2)
    assert named in last(refused)
    assert tree(finished) == before
    assert not (finished / "rounds/other").exists()


def test_a_checkpoint_folder_alone_resumes_elsewhere(finished, tmp_path):
    """Only weights are copied: settings come along, the baseline is measured anew, the bytes are the same."""
    for n in (1, 2, 3):
        shutil.copytree(adapters(finished)[n - 1], tmp_path / f"checkpoints/tiny/round_{n:03d}/adapter")
    source = finished / "checkpoints/tiny/round_003"
    shutil.copy(source / "composition.json", tmp_path / "checkpoints/tiny/round_003")
    command = ["--resume-from", "checkpoints/tiny/round_003", "--rounds", 4, "--track.mode", "disabled"]
    # Speed settings decide the last bits of a training, and they stay with the machine.
    speed = ["--engine.max_model_len", 1024, "--train.micro_batch_size", 4]
    model = ["--model.name", finished / "model", *speed]
    run(*command, "--model.name", tmp_path / "nowhere", cwd=tmp_path, code=2)
    run(*command, *model, "--monitor.action", "warn", cwd=tmp_path)
    original = tmp_path / "original"
    shutil.copytree(finished, original, symlinks=True)
    run("--config", "tiny.yaml", "--rounds", 4, cwd=original)
    for name in ("adapter/adapter_model.safetensors", "merged/model.safetensors"):
        here, there = (root / "checkpoints/tiny/round_004" / name for root in (tmp_path, original))
        assert here.read_bytes() == there.read_bytes()
    assert "as they were made" in run("verify", "tiny", cwd=tmp_path).stdout


def test_going_on_from_an_earlier_round_uses_what_still_matches(folder):
    before = tree(folder)
    done = run("--resume-from", "checkpoints/tiny/round_001", "--rounds", 3, cwd=folder)
    assert "where their inputs still match: 2 to 3" in done.stderr
    assert tree(folder) == before


def test_fewer_rounds_than_there_are_are_refused(finished):
    refused = run("--resume-from", "tiny@3", "--run", "x", "--rounds", 2, cwd=finished, code=2)
    assert "--rounds is the total" in last(refused)
    assert not (finished / "rounds/x").exists()


def test_accumulating_from_a_checkpoint_alone_is_refused(finished, tmp_path):
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints", symlinks=True)
    flags = ["--model.name", finished / "model", "--train.data_policy", "accumulate", "--rounds", 4]
    speed = ["--engine.max_model_len", 1024, "--track.mode", "disabled"]
    refused = run("--resume-from", "tiny@3", *flags, *speed, cwd=tmp_path, code=2)
    assert "those of round 1 are not in" in last(refused)
    assert not (tmp_path / "rounds").exists()


def test_another_base_is_refused(folder, tiny_llama, tiny_qwen3):
    other = (
        tiny_qwen3
        if json.loads((folder / "model/config.json").read_text())["model_type"] == "llama"
        else tiny_llama
    )
    refused = run("--resume-from", "tiny@2", "--run", "x", "--model.name", other, cwd=folder, code=2)
    assert "is not the model that tiny@2 was trained from" in last(refused)
    assert not (folder / "rounds/x").exists()


def test_a_stop_is_obeyed_until_it_is_passed_over(tmp_path, tiny_llama):
    harmful = {"learning_rate": 0.3, "max_grad_norm": 100.0}
    train = {"lora_rank": 4, "batch_size": 4, "micro_batch_size": 4, **harmful}
    tiny_config(tmp_path, tiny_llama, "transformers", train=train, monitor={"action": "stop"}, rounds=6)
    stopped = run("--config", "tiny.yaml", cwd=tmp_path, code=3)
    assert "--continue-past-stop" in last(stopped)
    after = max(Place(tmp_path, "tiny").known_rounds())
    more = ["--config", "tiny.yaml", "--rounds", after + 1]
    run(*more, cwd=tmp_path, code=3)
    assert max(Place(tmp_path, "tiny").known_rounds()) == after
    run(*more, "--continue-past-stop", cwd=tmp_path)
    assert Place(tmp_path, "tiny").stage(after + 1, "monitor").is_dir()
    run(*more, cwd=tmp_path)  # what was passed over stays passed over
    assert "as they were made" in run("verify", "tiny", cwd=tmp_path).stdout


def test_every_loop_choice_does_what_it_says(tmp_path, tiny_qwen3):
    train = {
        "learning_rate": 1e-3,
        "lora_rank": 4,
        "batch_size": 4,
        "micro_batch_size": 4,
        "start_from": "base",
        "data_policy": "accumulate",
        "human_share": 0.25,
    }
    sample = {"max_new_tokens": 24, "shard_size": 8, "policy": "base"}
    tiny_config(tmp_path, tiny_qwen3, "transformers", train=train, sample=sample, rounds=2)
    run("--config", "tiny.yaml", cwd=tmp_path)
    place = Place(tmp_path, "tiny")
    assert [part.path for part in read(place.checkpoint(2)).adapters] == ["../round_002/adapter"]
    rows = [read_rows(place.stage(n, "sample") / "samples.parquet", Sample) for n in (1, 2)]
    assert {row.policy_round for row in rows[0] + rows[1]} == {0}
    assert [row.token_ids for row in rows[0]] != [row.token_ids for row in rows[1]]
    kept = [store.finished(place.stage(n, "filter")).manifest.metrics["kept"] for n in (1, 2)]
    trained = [store.finished(place.stage(n, "train")).manifest.metrics for n in (1, 2)]
    assert [metrics["rows_sampled"] for metrics in trained] == [kept[0], sum(kept)]
    assert [metrics["rows_human"] for metrics in trained] == [
        round(kept[0] / 3),
        min(16, round(sum(kept) / 3)),
    ]
    first = run("status", cwd=tmp_path).stdout.splitlines()
    head = " ".join(first[:5])
    for part in ("drawn by the base", "trained on the base", "accumulate", "25% human-written"):
        assert part in head
    for flags in (
        ["--train.start_from", "previous"],
        ["--sample.policy", "previous"],
        ["--train.data_policy", "replace"],
        ["--train.human_share", "0"],
    ):
        assert flags[0].removeprefix("--") in last(run("--config", "tiny.yaml", *flags, cwd=tmp_path, code=2))
    assert math.isfinite(trained[1]["loss_last"])
