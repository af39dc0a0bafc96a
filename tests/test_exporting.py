"""All rounds as one adapter: the same change of every weight, whatever ranks and scales they had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssd_loop.checkpoints import Origin
from ssd_loop.composition import Base, Composition, Part, settings_of
from ssd_loop.config_file import load
from ssd_loop.exporting import card, write_joined
from ssd_loop.lora import Term, delta, opened
from ssd_loop.place import Place
from ssd_loop.training import ADAPTER_CONFIG, WEIGHTS
from tests import tiny
from tests.test_merging import LORA_Q_PROJ, Q_PROJ, hand_made, peft_adapter, q_proj_factors


def change(terms: list[Term]) -> dict[str, torch.Tensor]:
    with opened(terms, None) as parts:
        return {name: delta(factors) for name, factors in parts.items()}


def test_adapters_of_other_ranks_scales_and_layers_become_one(tmp_path: Path) -> None:
    base = tiny.build("qwen3", tmp_path / "base")
    terms = [
        Term(peft_adapter(base, tmp_path / "all", 1)),
        Term(hand_made(tmp_path / "q_proj", q_proj_factors(rank=3), lora_alpha=5), 0.5),
    ]
    out = tmp_path / "one"
    out.mkdir()
    write_joined(terms, out)
    wanted, got = change(terms), change([Term(out)])
    assert set(wanted) == set(got)
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-5, atol=1e-8)
    settings = json.loads((out / ADAPTER_CONFIG).read_text())
    assert settings["r"] == settings["lora_alpha"] == 4 + 3
    assert {tensor.shape[0] for name, tensor in load_file(out / WEIGHTS).items() if ".lora_A." in name} == {7}


def test_it_loads_in_peft_and_changes_what_it_should(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = tiny.build("llama", tmp_path / "base")
    terms = [Term(hand_made(tmp_path / str(n), q_proj_factors(), task_type="CAUSAL_LM")) for n in (1, 2)]
    out = tmp_path / "one"
    out.mkdir()
    write_joined(terms, out)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    after = PeftModel.from_pretrained(plain, out).merge_and_unload().state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{Q_PROJ}.weight"}
    factors = q_proj_factors()
    once = factors[f"{LORA_Q_PROJ}.lora_B.weight"] @ factors[f"{LORA_Q_PROJ}.lora_A.weight"] * 4 / 2
    got = after[f"{Q_PROJ}.weight"] - before[f"{Q_PROJ}.weight"]
    torch.testing.assert_close(got, 2 * once, rtol=1e-3, atol=1e-5)


def test_the_same_adapters_give_the_same_bytes(tmp_path: Path) -> None:
    term = Term(hand_made(tmp_path / "adapter", q_proj_factors()))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_joined([term, term], tmp_path / name)
    for file in (WEIGHTS, ADAPTER_CONFIG):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_every_layer_is_named_as_a_target(tmp_path: Path, kind: tiny.TinyKind) -> None:
    base = tiny.build(kind, tmp_path / "base")
    out = tmp_path / "one"
    out.mkdir()
    write_joined([Term(peft_adapter(base, tmp_path / "adapter", 1))], out)
    targets = json.loads((out / ADAPTER_CONFIG).read_text())["target_modules"]
    assert set(targets) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_the_card_of_round_0_does_not_call_the_base_distilled(tmp_path: Path) -> None:
    base = Base("some/model", None, "Some Model", "bfloat16", "c0ffee")
    settings = settings_of(load(None, {}), "vllm")
    texts = []
    for n, parts in ((0, ()), (1, (Part("round_001/adapter", "abc", 1.0),))):
        content = Composition(base, "stochastic", parts, settings, {})
        texts.append(card(Origin(Place(tmp_path, "mine"), n, content), adapter=False))
    assert "Some Model as it was before the first round" in texts[0]
    assert "fine-tuned" not in texts[0]
    assert "LoRA" not in texts[0]
    assert "fine-tuned on its own samples" in texts[1]
    assert all("content hash `c0ffee`" in text and "## Loading" in text for text in texts)
