from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssd_loop.config import TrainConfig
from ssd_loop.errors import ConfigError, StageFailedError
from ssd_loop.training import ADAPTER_CONFIG, WEIGHTS, train
from ssd_loop.training_rows import ROWS, ROWS_AT_ONCE, TrainingRow, example, on_disk, reading_order
from tests import tiny

STOP = 2  # <|im_end|> of the tiny tokenizer
CONFIG = TrainConfig(batch_size=4, micro_batch_size=2, lora_rank=4, lora_alpha=8)

pytestmark = pytest.mark.usefixtures("one_thread")


def make_rows(count: int = 11, seed: int = 0) -> list[TrainingRow]:
    """Rows of many lengths; every third one was cut and has no stop token."""
    rng = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(3, 256) for _ in range(rng.randint(low, high))]

    return [TrainingRow(ids(4, 20), ids(3, 25) + [STOP] * (index % 3 > 0)) for index in range(count)]


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapter")
    train(CONFIG, model_dir=tiny_llama, rows=make_rows(), seed=7, device="cpu", out=out)
    return out


def test_example_trains_on_the_sampled_ids_and_masks_the_prompt() -> None:
    assert example(TrainingRow((5, 6, 7), (8, 9, STOP))) == {
        "input_ids": [5, 6, 7, 8, 9, STOP],
        "labels": [-100, -100, -100, 8, 9, STOP],
    }


def test_example_appends_nothing_to_a_truncated_sample() -> None:
    assert example(TrainingRow((5,), (8, 9))) == {"input_ids": [5, 8, 9], "labels": [-100, 8, 9]}


def test_rows_are_mapped_from_a_file_that_goes_away(tmp_path: Path) -> None:
    rows = make_rows(ROWS_AT_ONCE + 7)
    with on_disk(rows, tmp_path) as (dataset, lengths):
        assert (tmp_path / ROWS).stat().st_size > 0
        assert [dict(row) for row in dataset] == [example(row) for row in rows]
        assert lengths.tolist() == [[len(row.prompt_token_ids), len(row.token_ids)] for row in rows]
        chosen = dataset.select([3, 3, ROWS_AT_ONCE])
        assert [len(row["input_ids"]) for row in chosen] == lengths.sum(axis=1)[[3, 3, ROWS_AT_ONCE]].tolist()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_file_of_rows(tmp_path: Path) -> None:
    (tmp_path / ROWS).symlink_to("/dev/full")
    with pytest.raises(OSError, match=ROWS) as caught, on_disk(make_rows(), tmp_path):
        pass
    assert caught.value.errno == errno.ENOSPC


def test_rows_that_cannot_be_trained_on_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(StageFailedError, match="empty"), on_disk([TrainingRow((5,), ())], tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("row", [TrainingRow((), (8,)), TrainingRow((5,), ())])
def test_example_refuses_a_row_without_prompt_or_completion(row: TrainingRow) -> None:
    with pytest.raises(StageFailedError, match="empty prompt or completion"):
        example(row)


@pytest.mark.parametrize(("rows", "epochs"), [(1, 1), (8, 1), (21, 3), (1000, 2)])
def test_reading_order_visits_every_row_once_per_epoch(rows: int, epochs: int) -> None:
    order = reading_order([17] * rows, batch_size=8, epochs=epochs, seed=1)
    assert sorted(order) == sorted(list(range(rows)) * epochs)


def test_reading_order_batches_rows_of_like_length() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(50, 400) for _ in range(330)]
    order = reading_order(lengths, batch_size=8, epochs=1, seed=1)
    batches = [[lengths[i] for i in order[at : at + 8]] for at in range(0, len(order), 8)]
    padded = sum(len(batch) * max(batch) for batch in batches)
    assert padded < 1.06 * sum(lengths)
    longest = [max(batch) for batch in batches]
    assert longest != sorted(longest)


def test_reading_order_depends_on_the_seed_alone() -> None:
    def draw(seed: int) -> list[int]:
        return reading_order(list(range(40)), batch_size=8, epochs=2, seed=seed)

    assert draw(3) == draw(3) != draw(4)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.slow
def test_the_first_loss_is_that_of_the_sampled_completions(kind: tiny.TinyKind, tmp_path: Path) -> None:
    """LoRA starts as no change, so the first loss must be the base model's own, row by row.

    One row is longer than TRL's default length limit: its last tokens must count as well.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model_dir = tiny.build(kind, tmp_path / "model", dtype="float32")
    rows = [*make_rows(7), TrainingRow([5] * 30, [(7 * i) % 250 + 3 for i in range(1100)] + [STOP])]
    config = CONFIG.model_copy(update={"batch_size": 8, "micro_batch_size": 4})
    metrics = train(config, model_dir=model_dir, rows=rows, seed=0, device="cpu", out=tmp_path)

    model = AutoModelForCausalLM.from_pretrained(model_dir)
    nll = 0.0
    for row in rows:
        ids = torch.tensor([[*row.prompt_token_ids, *row.token_ids]])
        with torch.no_grad():
            logprobs = model(ids).logits[0].double().log_softmax(-1)
        start = len(row.prompt_token_ids)
        nll -= sum(float(logprobs[start + i - 1, token]) for i, token in enumerate(row.token_ids))
    tokens = sum(len(row.token_ids) for row in rows)
    assert metrics["loss_first"] == pytest.approx(nll / tokens, rel=1e-5)
    assert metrics["steps"] == 1
    assert metrics["tokens_trained"] == tokens
    assert metrics["tokens_total"] == tokens + sum(len(row.prompt_token_ids) for row in rows)


@pytest.mark.slow
def test_the_adapter_is_plain_and_names_no_place(adapter: Path, tiny_llama: Path) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    assert sorted(file.name for file in adapter.iterdir()) == [ADAPTER_CONFIG, WEIGHTS]
    text = (adapter / ADAPTER_CONFIG).read_text()
    settings = json.loads(text)
    assert text == json.dumps(settings, indent=2, sort_keys=True) + "\n"
    assert settings["base_model_name_or_path"] is None
    assert settings["peft_version"] is None
    assert (settings["r"], settings["lora_alpha"]) == (4, 8)
    assert str(tiny_llama) not in text
    tensors = load_file(adapter / WEIGHTS)
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"torch.float32"}
    assert all(bool(tensor.any()) for tensor in tensors.values())
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), adapter)
    assert sum(name.endswith("lora_A.default.weight") for name, _ in loaded.named_parameters()) == 14


@pytest.mark.slow
def test_training_again_gives_the_same_bytes_and_leaves_the_process_alone(
    adapter: Path, tiny_llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    import torch

    def process_state() -> tuple[object, ...]:
        return (
            dict(os.environ),
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
        )

    before, seen = process_state(), []
    train(
        CONFIG,
        model_dir=tiny_llama,
        rows=make_rows(),
        seed=7,
        device="cpu",
        out=tmp_path,
        on_step=lambda *step: seen.append(step),
    )
    assert digests(tmp_path) == digests(adapter)
    assert process_state() == before
    assert [step[:2] for step in seen] == [(1, 3), (2, 3), (3, 3)]
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_another_process_gives_the_same_bytes(adapter: Path, tiny_llama: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests import test_training as t; "
        "t.train(t.CONFIG, model_dir=Path(sys.argv[1]), rows=t.make_rows(), seed=7, device='cpu', "
        "out=Path(sys.argv[2]))"
    )
    subprocess.run(
        [sys.executable, "-c", script, tiny_llama, tmp_path],
        check=True,
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"PYTHONHASHSEED": "3", "OMP_NUM_THREADS": "1"},
    )
    assert digests(tmp_path) == digests(adapter)


@pytest.mark.slow
def test_an_interrupt_gets_through_and_spoils_nothing(
    adapter: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    def interrupt(step: int, steps: int, loss: float) -> None:
        raise KeyboardInterrupt

    arguments = {"model_dir": tiny_llama, "rows": make_rows(), "seed": 7, "device": "cpu", "out": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, **arguments, on_step=interrupt)
    assert list(tmp_path.iterdir()) == []
    train(CONFIG, **arguments)
    assert digests(tmp_path) == digests(adapter)


@pytest.mark.slow
def test_the_seed_changes_the_adapter_and_the_micro_batch_hardly_does(
    adapter: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    def flat(folder: Path) -> torch.Tensor:
        tensors = load_file(folder / WEIGHTS)
        return torch.cat([tensors[name].flatten() for name in sorted(tensors)])

    def trained(name: str, seed: int, micro_batch_size: int) -> torch.Tensor:
        (tmp_path / name).mkdir()
        config = CONFIG.model_copy(update={"micro_batch_size": micro_batch_size})
        rows = make_rows()
        train(config, model_dir=tiny_llama, rows=rows, seed=seed, device="cpu", out=tmp_path / name)
        return flat(tmp_path / name)

    wanted = flat(adapter)
    assert torch.dist(trained("micro", 7, 4), wanted) < 0.01 * wanted.norm()
    assert torch.dist(trained("seed", 8, 2), wanted) > 0.5 * wanted.norm()


def test_repeating_one_sample_lowers_its_loss(tiny_llama: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"epochs": 8, "learning_rate": 5e-2})
    metrics = train(config, model_dir=tiny_llama, rows=make_rows(4), seed=0, device="cpu", out=tmp_path)
    assert metrics["steps"] == 8
    assert metrics["loss_last"] < 0.8 * metrics["loss_first"]


def test_no_rows_is_a_clear_error(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(StageFailedError, match="no samples are left"):
        train(CONFIG, model_dir=tiny_llama, rows=[], seed=0, device="cpu", out=tmp_path)


@pytest.mark.slow
def test_unknown_target_modules_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"target_modules": ("q_proj", "lm_head", "qproj")})
    with pytest.raises(ConfigError, match=r"names lm_head, qproj.*choose from down_proj, gate_proj"):
        train(config, model_dir=tiny_llama, rows=make_rows(), seed=0, device="cpu", out=tmp_path)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model_dir = tiny.build("llama", tmp_path / "model")
    weights = load_file(model_dir / "model.safetensors")
    weights["model.norm.weight"][0] = float("inf")
    save_file(weights, model_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageFailedError, match=r"diverged at step 1 of 3.*lower train.learning_rate 2e-05"):
        train(CONFIG, model_dir=model_dir, rows=make_rows(), seed=0, device="cpu", out=tmp_path)


def test_importing_the_module_imports_no_torch() -> None:
    code = "import sys, ssd_loop.training, ssd_loop.merging; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_in_a_mixture_of_experts_only_attention_is_trained_and_merges(tmp_path: Path) -> None:
    """Training, merging and the gate on a model whose experts are fused in memory and separate on disk."""
    import torch
    from safetensors.torch import load_file

    from ssd_loop import gate
    from ssd_loop.lora import Term
    from ssd_loop.merging import merge
    from tests.test_merging import peft_sum

    base = tiny.build("qwen3_moe", tmp_path / "base")
    folders = [tmp_path / name for name in ("adapter", "merged")]
    for folder in folders:
        folder.mkdir()
    adapter, merged = folders
    train(
        CONFIG.model_copy(update={"learning_rate": 1e-2}),  # tiny updates drown in flips of the routing
        model_dir=base,
        rows=make_rows(),
        seed=7,
        device="cpu",
        out=adapter,
    )
    trained = {name.split(".lora_")[0] for name in load_file(adapter / WEIGHTS)}
    assert len(trained) == 2 * 4
    assert all(".self_attn." in name for name in trained)
    merge("stochastic", base_dir=base, terms=[Term(adapter)], out=merged)
    before, after = load_file(base / "model.safetensors"), load_file(merged / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {f"base_model.model.{name.removesuffix('.weight')}" for name in changed} == trained
    exact = peft_sum(base, [adapter])
    for name in changed:
        torch.testing.assert_close(after[name].float(), exact[name], rtol=2.0**-7, atol=1e-6)
    rng = random.Random(1)
    probes = [[rng.randrange(3, 256) for _ in range(40)] for _ in range(32)]
    metrics = gate.check(base_dir=base, merged_dir=merged, terms=[Term(adapter)], probes=probes, device="cpu")
    assert metrics["gate_slope"] == pytest.approx(1.0, abs=3 * metrics["gate_slope_se"] + 0.02)


def test_experts_cannot_be_named_as_targets(tmp_path: Path) -> None:
    base = tiny.build("qwen3_moe", tmp_path / "base")
    config = CONFIG.model_copy(update={"target_modules": ("q_proj", "gate_up_proj")})
    with pytest.raises(ConfigError, match=r"gate_up_proj.*mixture of experts: attention alone"):
        train(config, model_dir=base, rows=make_rows(), seed=7, device="cpu", out=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dies_at", [1, 7, 8, 13, 20])
def test_a_killed_training_goes_on_from_its_last_saved_state_to_the_same_bytes(
    tiny_llama: Path, tmp_path: Path, dies_at: int
) -> None:
    """Also where the newest state is torn: cut off, with a byte changed, or without its seal."""
    config = CONFIG.model_copy(update={"probe_every": 2, "epochs": 8})
    arguments: dict[str, Any] = {
        "model_dir": tiny_llama,
        "rows": make_rows(),
        "seed": 7,
        "device": "cpu",
        "probe": [list(range(3, 40)), list(range(9, 60))],
    }
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    metrics = train(config, **arguments, out=whole, save_every=0)

    def die(step: int, steps: int, loss: float) -> None:
        if step == dies_at:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(config, **arguments, out=broken, on_step=die, save_every=3)
    saved = list(broken.glob("shards/checkpoint-*"))
    assert len(saved) == (dies_at > 3)  # an earlier one is gone once a later one is whole
    if saved:
        shutil.copytree(saved[0], broken / "shards/checkpoint-21")
        file = broken / "shards/checkpoint-21" / ("whole.json" if dies_at == 7 else "optimizer.pt")
        content = file.read_bytes()
        file.unlink()
        if dies_at in (8, 13):
            file.write_bytes(content[:-1] + b"?" * (dies_at == 13))
    seen: list[int] = []
    resumed = train(config, **arguments, out=broken, on_step=lambda step, *_: seen.append(step), save_every=3)
    assert seen[0] == (dies_at - 1) // 3 * 3 + 1  # the step after the last one that was saved before the kill
    assert resumed == metrics
    assert digests(broken) == digests(whole)  # adapter, its config and the probe; nothing else is left
