from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ssd_loop.errors import BadArtifactError
from ssd_loop.lora import Term
from ssd_loop.merging import merge
from ssd_loop.rounding import Rounding, noise, rounded
from ssd_loop.training import ADAPTER_CONFIG, WEIGHTS
from tests import tiny

STEP = 2.0**-7  # distance of neighbours in bfloat16, relative to the power of two below
Q_PROJ = "model.layers.0.self_attn.q_proj"
LORA_Q_PROJ = f"base_model.model.{Q_PROJ}"


def merged_into(out: Path, base: Path, adapters: list[Path], rounding: Rounding = "stochastic") -> Path:
    out.mkdir(parents=True)
    merge(rounding, base_dir=base, terms=[Term(adapter) for adapter in adapters], out=out)
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def peft_adapter(base: Path, out: Path, seed: int, size: float = 3e-3) -> Path:
    """An adapter as PEFT writes it, with a second factor that is not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = LoraConfig(r=4, lora_alpha=6 + seed, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), settings)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=size)
    model.save_pretrained(out)
    return out


def peft_sum(base: Path, adapters: list[Path]) -> dict[str, torch.Tensor]:
    """Base plus adapters by PEFT, one after another in float32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def hand_made(folder: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS)
    text = json.dumps({"peft_type": "LORA", "lora_alpha": 4, "r": 2} | settings)
    (folder / ADAPTER_CONFIG).write_text(text)
    return folder


def q_proj_factors(rank: int = 2) -> dict[str, torch.Tensor]:
    """Both factors for one weight of the tiny models, which is 96 x 48."""
    torch.manual_seed(0)
    factors = {"A": torch.randn(rank, 48), "B": torch.randn(96, rank) * 1e-2}
    return {f"{LORA_Q_PROJ}.lora_{factor}.weight": value for factor, value in factors.items()}


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def rounds(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Path]]:
    """A bfloat16 base and the adapters of two rounds."""
    folder = tmp_path_factory.mktemp(request.param)
    base = tiny.build(request.param, folder / "base")
    return base, [peft_adapter(base, folder / f"adapter_{seed}", seed) for seed in (1, 2)]


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_two_rounds_are_base_plus_both_updates_rounded_once(
    rounds: tuple[Path, list[Path]], tmp_path: Path, rounding: Rounding
) -> None:
    base, adapters = rounds
    before, exact = weights(base), peft_sum(base, adapters)
    after = weights(merged_into(tmp_path / "merged", base, adapters, rounding))
    errors = []
    for name, tensor in after.items():
        if "_proj" not in name:
            assert torch.equal(tensor, before[name]), name
            continue
        step = STEP * 2.0 ** torch.floor(torch.log2(exact[name].abs().clamp_min(2.0**-100)))
        error = (tensor.float() - exact[name]) / step
        # A little over one step, or half of one: PEFT adds in another order.
        assert error.abs().max() < (1.01 if rounding == "stochastic" else 0.51), name
        errors.append(error.flatten())
    together = torch.cat(errors)
    assert together.mean().abs() < 4 * together.std() / math.sqrt(together.numel())


def test_the_merged_folder_is_a_model_that_answers_like_base_plus_adapters(
    rounds: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, adapters = rounds
    out = merged_into(tmp_path / "merged", base, adapters)
    assert {file.name for file in out.iterdir()} == {file.name for file in base.iterdir()}
    AutoTokenizer.from_pretrained(out)
    ids = torch.arange(3, 60).unsqueeze(0)

    def law(state: dict[str, torch.Tensor] | None, folder: Path) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if state is not None:
            model.load_state_dict(state)
        with torch.no_grad():
            return model(ids).logits[0].log_softmax(-1).flatten()

    start, exact, merged = law(None, base), law(peft_sum(base, adapters), base), law(None, out)
    slope = torch.dot(merged - start, exact - start) / torch.dot(exact - start, exact - start)
    assert slope == pytest.approx(1.0, abs=0.1)


def test_no_adapters_give_the_base_byte_for_byte(rounds: tuple[Path, list[Path]], tmp_path: Path) -> None:
    base, _ = rounds
    out = merged_into(tmp_path / "merged", base, [])
    assert all((out / file.name).read_bytes() == file.read_bytes() for file in base.iterdir())


def test_shards_and_index_stay_as_in_the_base(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    single = tiny.build("qwen3", tmp_path / "single")
    model = AutoModelForCausalLM.from_pretrained(single)
    base = tmp_path / "base"
    model.save_pretrained(base, max_shard_size="40KB")
    adapter = hand_made(tmp_path / "adapter", q_proj_factors())
    done: list[tuple[int, int]] = []
    out = tmp_path / "merged"
    out.mkdir()
    merge(
        "stochastic",
        base_dir=base,
        terms=[Term(adapter)],
        out=out,
        on_shard=lambda *count: done.append(count),
    )
    files = sorted(file.name for file in base.iterdir())
    assert sorted(file.name for file in out.iterdir()) == files
    shards = [name for name in files if name.endswith(".safetensors")]
    assert len(shards) > 2
    assert done == [(n, len(shards)) for n in range(1, len(shards) + 1)]
    for shard in shards:
        assert list(load_file(out / shard)) == list(load_file(base / shard))
    assert torch.equal(
        weights(out)[f"{Q_PROJ}.weight"],
        weights(merged_into(tmp_path / "other", single, [adapter]))[f"{Q_PROJ}.weight"],
    )


def test_a_weight_that_did_not_change_keeps_its_bits(tiny_llama: Path, tmp_path: Path) -> None:
    first, second = q_proj_factors(), q_proj_factors()
    second[f"{LORA_Q_PROJ}.lora_B.weight"][:40] = 0
    adapters = [hand_made(tmp_path / "one", first), hand_made(tmp_path / "two", second)]
    base = weights(tiny_llama)[f"{Q_PROJ}.weight"]
    one = weights(merged_into(tmp_path / "round_1", tiny_llama, adapters[:1]))[f"{Q_PROJ}.weight"]
    two = weights(merged_into(tmp_path / "round_2", tiny_llama, adapters))[f"{Q_PROJ}.weight"]
    assert not torch.equal(one, base)
    assert torch.equal(two[:40], one[:40])
    assert not torch.equal(two[40:], one[40:])


def test_merging_again_gives_the_same_bytes(rounds: tuple[Path, list[Path]], tmp_path: Path) -> None:
    base, adapters = rounds
    first, second = (merged_into(tmp_path / name, base, adapters) for name in ("first", "second"))
    assert all((second / file.name).read_bytes() == file.read_bytes() for file in first.iterdir())


def test_a_float32_base_is_not_rounded(tmp_path: Path) -> None:
    base = tiny.build("llama", tmp_path / "base", dtype="float32")
    factors = q_proj_factors()
    adapter = hand_made(tmp_path / "adapter", factors)
    wanted = weights(base)[f"{Q_PROJ}.weight"] + 2.0 * (
        factors[f"{LORA_Q_PROJ}.lora_B.weight"] @ factors[f"{LORA_Q_PROJ}.lora_A.weight"]
    )
    out = tmp_path / "merged"
    out.mkdir()
    metrics = merge("stochastic", base_dir=base, terms=[Term(adapter)], out=out)
    torch.testing.assert_close(weights(out)[f"{Q_PROJ}.weight"], wanted, rtol=1e-6, atol=1e-7)
    assert metrics["rounding_error_share"] == 0.0
    assert metrics["update_kept_share"] == pytest.approx(1.0, rel=1e-5)


def test_metrics_tell_how_much_of_a_small_update_survives(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = peft_adapter(tiny_llama, tmp_path / "adapter", 1, size=3e-5)
    metrics: dict[str, dict[str, float | int]] = {}
    roundings: tuple[Rounding, ...] = ("stochastic", "nearest")
    for rounding in roundings:
        out = tmp_path / rounding
        out.mkdir()
        metrics[rounding] = merge(rounding, base_dir=tiny_llama, terms=[Term(adapter)], out=out)
    stochastic, nearest = metrics["stochastic"], metrics["nearest"]
    assert stochastic["tensors_changed"] == 14
    assert stochastic["update_kept_share"] == pytest.approx(1.0, abs=0.15)
    assert nearest["update_kept_share"] < 0.5
    assert nearest["rounding_error_share"] == nearest["nearest_error_share"]
    assert nearest["elements_unchanged_share"] > stochastic["elements_unchanged_share"] > 0.5
    assert 0 < nearest["delta_norm_share"] == stochastic["delta_norm_share"] < 1e-2


def test_alpha_patterns_set_the_scale(tiny_llama: Path, tmp_path: Path) -> None:
    plain = hand_made(tmp_path / "plain", q_proj_factors(), lora_alpha=12)
    pattern = hand_made(tmp_path / "pattern", q_proj_factors(), alpha_pattern={"q_proj": 12})
    first, second = (
        merged_into(tmp_path / f"merged_{adapter.name}", tiny_llama, [adapter])
        for adapter in (plain, pattern)
    )
    assert torch.equal(weights(first)[f"{Q_PROJ}.weight"], weights(second)[f"{Q_PROJ}.weight"])


@pytest.mark.parametrize("value", [1.0, -1.0, 1.0 + 0.3 * STEP, -3.0 - 1.3 * STEP, 2.0 - 0.1 * STEP, 1e-39])
def test_stochastic_rounding_is_right_on_average(value: float) -> None:
    values = torch.full((400, 500), value)
    result = rounded(values, torch.bfloat16, "w", "stochastic").double()
    exact = values[0, 0].double()
    low, high = result.min(), result.max()
    assert low <= exact <= high
    # Only the two neighbours, so the mean of n draws is off by less than 5 / (2 sqrt n) steps.
    assert sorted(set(result.flatten().tolist())) == sorted({low.item(), high.item()})
    assert (result.mean() - exact).abs() <= 5 / 2 * (high - low) / math.sqrt(values.numel())


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_rounding_keeps_what_bfloat16_can_hold(rounding: Rounding) -> None:
    torch.manual_seed(0)
    values = torch.cat([torch.randn(10_000).bfloat16().float(), torch.tensor([0.0, -0.0, 2.0**-133])])
    assert torch.equal(rounded(values, torch.bfloat16, "w", rounding).float(), values)


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_rounding_never_makes_a_finite_value_infinite(rounding: Rounding) -> None:
    largest = torch.finfo(torch.float32).max
    values = torch.tensor([largest, -largest]).repeat(1000)
    result = rounded(values, torch.bfloat16, "w", rounding)
    assert torch.equal(result.float().abs().unique(), torch.tensor([torch.finfo(torch.bfloat16).max]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_values_that_are_not_finite_are_refused(bad: float, dtype: torch.dtype) -> None:
    with pytest.raises(BadArtifactError, match="layer_7 that are not finite"):
        rounded(torch.tensor([1.0, bad, 2.0]), dtype, "layer_7", "stochastic")


def test_a_base_in_another_dtype_is_refused() -> None:
    with pytest.raises(BadArtifactError, match=r"torch\.float16"):
        rounded(torch.ones(3), torch.float16, "w", "nearest")


def test_noise_is_splitmix64_started_by_the_name() -> None:
    import hashlib

    state = int.from_bytes(hashlib.sha256(b"model.w").digest()[:8], "little")
    wanted = []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        word = state
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
        word ^= word >> 31
        wanted += [word >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
    assert noise("model.w", 11).tolist() == wanted[:11]


def test_noise_is_uniform_and_its_own_for_every_tensor() -> None:
    draws = noise("a", 65_536 * 16)
    counts = np.bincount(draws >> 8, minlength=256)
    expected = draws.size / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255)
    both = np.corrcoef(draws, noise("b", draws.size))[0, 1]
    assert abs(both) < 5 / math.sqrt(draws.size)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({f"{LORA_Q_PROJ}.lora_B.weight": None}, f"{LORA_Q_PROJ}.lora_A.weight"),
        ({f"{LORA_Q_PROJ}.lora_A.weight": None}, f"{LORA_Q_PROJ}.lora_B.weight"),
        ({f"{LORA_Q_PROJ}.lora_A.weight": torch.ones(2, 47)}, Q_PROJ),
        ({f"{LORA_Q_PROJ}.lora_B.weight": torch.ones(96, 3)}, Q_PROJ),
        ({"base_model.model.lm_head.lora_A.weight": torch.ones(2, 48)}, "lm_head.lora_A"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 2)}, "lora_embedding_A"),
        ({"base_model.model.model.norm.weight": torch.ones(48)}, "model.norm.weight"),
        ({f"{LORA_Q_PROJ}.lora_magnitude_vector.weight": torch.ones(96)}, "lora_magnitude_vector"),
    ],
)
def test_an_adapter_tensor_without_its_place_is_named(
    tiny_llama: Path, tmp_path: Path, change: dict[str, torch.Tensor | None], named: str
) -> None:
    tensors = {name: value for name, value in (q_proj_factors() | change).items() if value is not None}
    adapter = hand_made(tmp_path / "adapter", tensors)
    with pytest.raises(BadArtifactError, match=named.replace(".", r"\.")):
        merged_into(tmp_path / "merged", tiny_llama, [adapter])
    assert list((tmp_path / "merged").iterdir()) == []


def test_an_adapter_of_another_model_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    tensors = {name.replace("layers.0", "layers.9"): value for name, value in q_proj_factors().items()}
    adapter = hand_made(tmp_path / "adapter", tensors)
    with pytest.raises(BadArtifactError, match=r"layers\.9.*use the base model"):
        merged_into(tmp_path / "merged", tiny_llama, [adapter])


@pytest.mark.parametrize(
    "setting",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"fan_in_fan_out": True},
        {"peft_type": "LOHA"},
    ],
)
def test_other_kinds_of_adapter_are_refused(
    tiny_llama: Path, tmp_path: Path, setting: dict[str, Any]
) -> None:
    adapter = hand_made(tmp_path / "adapter", q_proj_factors(), **setting)
    with pytest.raises(BadArtifactError, match=next(iter(setting))):
        merged_into(tmp_path / "merged", tiny_llama, [adapter])


@pytest.mark.parametrize("missing", [WEIGHTS, ADAPTER_CONFIG])
def test_an_adapter_with_a_file_missing_is_refused(tiny_llama: Path, tmp_path: Path, missing: str) -> None:
    adapter = hand_made(tmp_path / "adapter", q_proj_factors())
    (adapter / missing).unlink()
    with pytest.raises(BadArtifactError, match=f"has no {missing}"):
        merged_into(tmp_path / "merged", tiny_llama, [adapter])


@pytest.mark.parametrize("start", [0, 1, 3, 4, 6, 4097])
def test_noise_may_begin_anywhere(start: int) -> None:
    assert noise("w", 50, start).tolist() == noise("w", start + 50)[start:].tolist()


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_rounding_in_parts_is_rounding_whole(rounding: Rounding) -> None:
    torch.manual_seed(0)
    values = torch.randn(7, 13)
    parts = [rounded(values[r : r + 2], torch.bfloat16, "w", rounding, start=13 * r) for r in range(0, 7, 2)]
    assert torch.equal(torch.cat(parts), rounded(values, torch.bfloat16, "w", rounding))


def test_a_tensor_larger_than_a_block_is_merged_in_parts(
    rounds: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapters = rounds
    monkeypatch.setattr("ssd_loop.merging.BLOCK_ELEMENTS", 500)  # some ten rows of a weight
    exact, before = peft_sum(base, adapters), weights(base)
    for name, tensor in weights(merged_into(tmp_path / "parts", base, adapters, "nearest")).items():
        if "_proj" not in name:
            assert torch.equal(tensor, before[name]), name
        else:
            torch.testing.assert_close(tensor.float(), exact[name], rtol=2.0**-8, atol=1e-6)


def test_an_adapter_counts_with_its_weight(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = hand_made(tmp_path / "adapter", q_proj_factors())
    half = hand_made(tmp_path / "half", q_proj_factors(), lora_alpha=2)
    out, other = tmp_path / "out", tmp_path / "other"
    out.mkdir()
    other.mkdir()
    merge("stochastic", base_dir=tiny_llama, terms=[Term(adapter, 0.5)], out=out)
    merge("stochastic", base_dir=tiny_llama, terms=[Term(half)], out=other)
    assert torch.equal(weights(out)[f"{Q_PROJ}.weight"], weights(other)[f"{Q_PROJ}.weight"])


@pytest.mark.parametrize("damage", ["cut", "grown", "header"])
def test_a_base_file_of_another_length_is_refused(tmp_path: Path, damage: str) -> None:
    base = tiny.build("llama", tmp_path / "base")
    file = base / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes({"cut": data[:-10], "grown": data + b"x", "header": data[:8] + b"?" + data[9:]}[damage])
    with pytest.raises(BadArtifactError, match=r"model\.safetensors.*fetch it again"):
        merged_into(tmp_path / "merged", base, [])


def test_a_base_without_generation_config_gets_its_stop_tokens_written(tmp_path: Path) -> None:
    base = tiny.build("llama", tmp_path / "base")
    (base / "generation_config.json").unlink()
    out = merged_into(tmp_path / "merged", base, [])
    written = json.loads((out / "generation_config.json").read_text())
    assert written["eos_token_id"]
    assert "generation_config.json" not in {file.name for file in base.iterdir()}


def test_tied_embeddings_stay_tied(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = merged_into(tmp_path / "merged", tiny_llama, [peft_adapter(tiny_llama, tmp_path / "adapter", 1)])
    assert "lm_head.weight" not in weights(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
