"""Shortcuts of training on a CPU: each against its formula, all against TRL and PEFT as they are."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from ssd_loop import cpu_training
from ssd_loop.cpu_training import adapters, attention, layers
from ssd_loop.cpu_training.adapters import AdaptedLinear
from ssd_loop.cpu_training.attention import BLOCK_TOKENS, KEPT_TOKENS, CausalAttention
from ssd_loop.cpu_training.layers import GatedUnit, RmsNorm
from ssd_loop.cpu_training.loss_head import CHUNK_TOKENS, FrozenHead
from ssd_loop.training import WEIGHTS, train
from ssd_loop.training_rows import TrainingRow
from tests import tiny
from tests.test_training import CONFIG, make_rows

CLOSE = {"float32": {"rtol": 1e-4, "atol": 1e-5}, "bfloat16": {"rtol": 0.05, "atol": 0.05}}
SHORTCUTS = (AdaptedLinear, CausalAttention, FrozenHead, GatedUnit, RmsNorm)
DTYPES = pytest.mark.parametrize("dtype", CLOSE)

pytestmark = pytest.mark.usefixtures("one_thread")


def calls_of(monkeypatch: pytest.MonkeyPatch, *shortcuts: Any) -> list[str]:
    """Gets the name of a shortcut each time that it is taken."""
    calls: list[str] = []
    for shortcut in shortcuts:

        def called(*args: Any, own: Any = shortcut.apply, name: str = shortcut.__name__) -> Any:
            calls.append(name)
            return own(*args)

        monkeypatch.setattr(shortcut, "apply", called)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 5e-3)])
def test_the_quick_path_trains_as_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, tolerance: float
) -> None:
    """TRL as it is, which scores prompts and padding too, against all that is left out on a CPU."""
    model_dir = tiny.build("llama", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype)
    model.save_pretrained(model_dir)
    long = [TrainingRow(range(3, 50), range(60, 60 + BLOCK_TOKENS + 9 * at)) for at in range(2)]
    config = CONFIG.model_copy(update={"epochs": 4, "learning_rate": 5e-3})
    losses: dict[str, list[float]] = {"quick": [], "plain": []}
    trained, entropies, taken = [], [], []
    calls = calls_of(monkeypatch, *SHORTCUTS)
    for path, found in losses.items():
        if path == "plain":
            monkeypatch.setattr(cpu_training, "quick", lambda *_: nullcontext())
        out = tmp_path / path
        out.mkdir()
        metrics = train(
            config,
            model_dir=model_dir,
            rows=[*make_rows(), *long],
            seed=0,
            device="cpu",
            out=out,
            on_step=lambda _step, _steps, loss, found=found: found.append(loss),
        )
        trained.append(load_file(out / WEIGHTS))
        entropies.append(metrics["entropy_mean"])
        taken.append(set(calls))
        calls.clear()
    assert taken == [{shortcut.__name__ for shortcut in SHORTCUTS}, set()]
    assert len(losses["quick"]) >= 8
    assert losses["quick"][-1] < losses["quick"][0]
    assert losses["quick"] == pytest.approx(losses["plain"], rel=tolerance)
    assert entropies[0] == pytest.approx(entropies[1], rel=tolerance)
    moved = sum(float((a - b).norm()) for a, b in zip(*(d.values() for d in trained), strict=True))
    size = sum(float(weights.norm()) for weights in trained[1].values())
    assert moved < 10 * tolerance * size


@DTYPES
def test_the_frozen_head_gives_loss_and_gradient_of_the_plain_formula(dtype: str) -> None:
    torch.manual_seed(0)
    tokens, width, vocabulary = CHUNK_TOKENS + 7, 24, 300
    weight = torch.randn(vocabulary, width).to(getattr(torch, dtype))
    hidden = torch.randn(tokens, width).to(weight.dtype).requires_grad_()
    targets, upstream = torch.randint(vocabulary, (tokens,)), torch.randn(tokens)
    with torch.autocast("cpu", enabled=dtype == "bfloat16"):
        logprobs, entropy, is_top1 = FrozenHead.apply(hidden, weight, targets)
    (logprobs * upstream).sum().backward()
    exact = hidden.detach().double().requires_grad_()
    logs = torch.log_softmax(exact @ weight.double().t(), dim=-1)
    (logs.gather(1, targets[:, None])[:, 0] * upstream).sum().backward()
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == "float32" else {"rtol": 0.05, "atol": 0.1}
    torch.testing.assert_close(logprobs.double(), logs.gather(1, targets[:, None])[:, 0], **tolerance)
    torch.testing.assert_close(entropy.double(), -(logs.exp() * logs).sum(-1), **tolerance)
    torch.testing.assert_close(hidden.grad.double(), exact.grad, **tolerance)
    assert (is_top1 == (logs.argmax(-1) == targets)).float().mean() > 0.98
    assert not entropy.requires_grad


@DTYPES
@pytest.mark.parametrize("tokens", [5, BLOCK_TOKENS, 2 * BLOCK_TOKENS + 3, KEPT_TOKENS + 1])
def test_attention_and_its_gradients_are_those_of_pytorch(dtype: str, tokens: int) -> None:
    torch.manual_seed(0)
    heads, groups, width, value_width = 6, 2, 16, 8
    shapes = (heads, width), (groups, width), (groups, value_width)
    inputs = [torch.randn(2, n, tokens, d).to(getattr(torch, dtype)).requires_grad_() for n, d in shapes]
    upstream = torch.randn(2, tokens, heads, value_width).to(inputs[0].dtype)
    mixed = CausalAttention.apply(*inputs, 0.3)
    exact_inputs = [each.detach().double().requires_grad_() for each in inputs]
    exact = torch.nn.functional.scaled_dot_product_attention(
        *exact_inputs, is_causal=True, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(mixed.double(), exact, **CLOSE[dtype])
    for found, wanted in zip(
        torch.autograd.grad(mixed, inputs, upstream),
        torch.autograd.grad(exact, exact_inputs, upstream.double()),
        strict=True,
    ):
        torch.testing.assert_close(found.double(), wanted, **CLOSE[dtype])


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("window", [None, 16])
def test_a_model_attends_as_before_with_padding_and_windows(
    tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch, padding: str, window: int | None
) -> None:
    """Plain causal layers go the quick way, padded behind or not; whatever else is asked goes to PyTorch."""
    layers = {"layer_types": ["full_attention", "sliding_attention"]} if window else {}
    changed = {"sliding_window": window, "use_sliding_window": bool(window), **layers}
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32, **changed)
    ids = torch.arange(3, 3 + 2 * 40).view(2, 40)
    mask = torch.ones_like(ids)
    if padding != "none":
        mask[1, slice(30, None) if padding == "right" else slice(0, 10)] = 0
    is_real = mask.bool()
    wanted = model(input_ids=ids, attention_mask=mask).logits[is_real]
    calls = calls_of(monkeypatch, CausalAttention)
    with attention.in_place_of_pytorchs():
        found = model(input_ids=ids, attention_mask=mask).logits[is_real]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert len(calls) == (0 if padding == "left" else 1 if window else 2)
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits[is_real], wanted)
    assert len(calls) < 3  # PyTorch's own again


def test_a_model_with_another_attention_keeps_it(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager")
    monkeypatch.setattr(CausalAttention, "apply", lambda *args: pytest.fail("it was asked"))
    with attention.in_place_of_pytorchs():
        model(input_ids=torch.arange(3, 33)[None])


@DTYPES
@pytest.mark.parametrize("has_bias", [False, True])
def test_an_adapted_layer_and_its_gradients_are_those_of_the_formula(dtype: str, has_bias: bool) -> None:
    torch.manual_seed(0)
    weight_dtype = getattr(torch, dtype)
    x = torch.randn(30, 24).to(weight_dtype).requires_grad_()
    weight, bias = torch.randn(40, 24).to(weight_dtype), torch.randn(40).to(weight_dtype)
    a, b = torch.randn(4, 24, requires_grad=True), torch.randn(40, 4, requires_grad=True)
    upstream = torch.randn(30, 40).to(weight_dtype)
    out = AdaptedLinear.apply(x, weight, bias if has_bias else None, a, b, 0.5)
    exact_inputs = [each.detach().double().requires_grad_() for each in (x, a, b)]
    exact_x, exact_a, exact_b = exact_inputs
    exact = exact_x @ weight.double().t() + has_bias * bias.double() + exact_x @ exact_a.t() @ exact_b.t() / 2
    gradients = torch.autograd.grad(out, (x, a, b), upstream)
    assert [out.dtype, *(each.dtype for each in gradients)] == [weight_dtype] * 2 + [torch.float32] * 2
    exacts = torch.autograd.grad(exact, exact_inputs, upstream.double())
    for found, wanted in zip((out, *gradients), (exact, *exacts), strict=True):
        error = (found.double() - wanted).norm() / wanted.norm()
        assert error < (1e-6 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize("changed", [{}, {"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_only_plain_adapters_take_the_short_way(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    settings = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}
    model = get_peft_model(model, LoraConfig(**settings, **changed))
    ids = torch.arange(3, 33)[None]
    calls = calls_of(monkeypatch, AdaptedLinear)

    def logits() -> torch.Tensor:
        torch.manual_seed(0)  # for dropout
        found: torch.Tensor = model(input_ids=ids).logits
        return found

    wanted = logits()
    with adapters.in_place_of_pefts():
        torch.testing.assert_close(logits(), wanted, rtol=1e-4, atol=1e-4)
        assert len(calls) == (0 if changed else 14)
        with model.disable_adapter():
            assert not torch.allclose(logits(), wanted)
    calls.clear()
    torch.testing.assert_close(logits(), wanted)
    assert not calls


@DTYPES
def test_a_norm_and_a_gated_unit_and_their_gradients_are_those_of_the_formula(dtype: str) -> None:
    torch.manual_seed(0)
    first, second, upstream = torch.randn(3, 2, 7, 24).to(getattr(torch, dtype))
    weight = torch.randn(24).to(first.dtype)
    inputs = first.requires_grad_(), second.requires_grad_()
    exact_x, exact_up = exact_inputs = [each.detach().double().requires_grad_() for each in inputs]
    quotient = exact_x / (exact_x.square().mean(-1, keepdim=True) + 0.1).sqrt()
    exacts = weight.double() * quotient, torch.nn.functional.silu(exact_x) * exact_up
    founds = RmsNorm.apply(inputs[0], weight, 0.1), GatedUnit.apply(*inputs)
    for found, exact, count in zip(founds, exacts, (1, 2), strict=True):
        assert found.dtype == first.dtype
        torch.testing.assert_close(found.double(), exact, **CLOSE[dtype])
        gradients = torch.autograd.grad(found, inputs[:count], upstream)
        exact_gradients = torch.autograd.grad(exact, exact_inputs[:count], upstream.double())
        for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
            torch.testing.assert_close(gradient.double(), exact_gradient, **CLOSE[dtype])


# What they have and Llama has not: means taken away first, factors of 1 + weight, norms that come after,
# windows, norms that take a gate, layers without attention, units that drop.
OTHERS: dict[str, dict[str, Any]] = {
    "cohere2": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma3_text": {
        "sliding_window": 16,
        "head_dim": 32,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "mamba_d_state": 16,
        "mamba_expand": 2,
        "num_local_experts": 0,
        "shared_intermediate_size": 96,
    },
    "mistral": {"sliding_window": 16, "head_dim": 16},
    "olmo2": {},
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "full_attention"],
        "head_dim": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "seed_oss": {"residual_dropout": 0.3, "head_dim": 16},
}


LLAMAS = {  # what computes as in Llama all the same
    "cohere2": {"Cohere2MLP"},
    "gemma3_text": set(),
    "granitemoehybrid": {"GraniteMoeHybridRMSNorm"},
    "mistral": {"MistralMLP", "MistralRMSNorm"},
    "olmo2": {"Olmo2MLP"},
    "qwen3_5_text": {"Qwen3_5MLP"},
    "seed_oss": {"SeedOssRMSNorm"},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures_compute_and_learn_what_they_did(kind: str) -> None:
    """In training, in float32: logits, and the gradients of adapters that are not zero."""
    sizes = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes | OTHERS[kind]))
    for weights in model.parameters():  # norms begin as ones or zeros, which would tell nothing
        if weights.dim() == 1:
            torch.nn.init.uniform_(weights, 0.5, 2.0)
    settings = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}
    model = get_peft_model(model.float(), LoraConfig(**settings)).train()
    ids = torch.randint(3, 300, (2, 40))

    def learnt() -> list[torch.Tensor]:
        torch.manual_seed(1)  # for dropout
        logits = model(input_ids=ids).logits
        trained = [weights for weights in model.parameters() if weights.requires_grad]
        loss = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None]).mean()
        return [logits.detach(), *torch.autograd.grad(loss, trained)]

    wanted = learnt()
    with attention.in_place_of_pytorchs(), adapters.in_place_of_pefts():
        layers.use(model)
        found = learnt()
    assert {type(module).__name__ for module in replaced(model).values()} == LLAMAS[kind]
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()


def replaced(model: Any) -> dict[str, Any]:
    """The modules, by name, whose forward is not that of their class."""
    return {name: module for name, module in model.named_modules() if "forward" in vars(module)}


def test_norms_and_units_are_replaced_and_give_the_same(tiny_qwen3: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32).requires_grad_(False)
    ids = torch.arange(3, 33)[None]
    wanted = model(input_ids=ids).logits
    layers.use(model)
    torch.testing.assert_close(model(input_ids=ids).logits, wanted, rtol=1e-5, atol=1e-5)
    of_layer = 4 + 1  # norms before attention and unit, of queries and keys; the unit
    assert len(replaced(model)) == 2 * of_layer + 1  # and the last norm


def test_what_is_trained_or_computes_something_else_stays(tiny_qwen3: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32, hidden_act="gelu")
    norm = model.model.norm
    model.requires_grad_(False)
    norm.weight.requires_grad_()
    first = model.model.layers[0].input_layernorm
    first.forward = lambda x: x * (1 + first.weight)  # as some models scale
    theirs = replaced(model)
    layers.use(model)
    names = set(replaced(model))
    assert {name for name in names if name.endswith("mlp")} == set()
    assert "model.norm" not in names
    assert set(theirs) == {"model.layers.0.input_layernorm"}
    assert torch.equal(first(torch.ones(48)), 1 + first.weight)
