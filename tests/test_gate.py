"""The gate lets through a merge that kept the update, and stops one that lost it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssd_loop import gate
from ssd_loop.errors import StageFailedError
from ssd_loop.gate import Slope, cut, failed, logprobs, slope
from ssd_loop.lora import Term
from ssd_loop.merging import merge
from ssd_loop.rounding import Rounding
from tests import tiny
from tests.test_merging import peft_adapter, peft_sum

PROBES = [[(7 * text + 3 * token) % 300 for token in range(48)] for text in range(16)]


def merged(base: Path, adapters: list[Path], out: Path, rounding: Rounding) -> Path:
    out.mkdir()
    merge(rounding, base_dir=base, terms=[Term(adapter) for adapter in adapters], out=out)
    return out


def test_the_slope_is_least_squares_through_the_origin() -> None:
    wanted = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    assert slope(wanted, 0.7 * wanted) == Slope(
        pytest.approx(0.7), pytest.approx(0.0), pytest.approx(15**0.5 / 2), pytest.approx(0.3 * 5 / 4)
    )
    found = slope(wanted, wanted + torch.tensor([[0.5, 0.0], [0.0, 0.0]], dtype=torch.float64))
    assert found.slope == pytest.approx(1 + 0.5 / 15)
    assert found.se > 0


def test_the_standard_error_counts_texts_not_tokens() -> None:
    torch.manual_seed(0)
    wanted, error = torch.randn(8, 5, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    once = slope(wanted, wanted + error)
    repeated = slope(wanted.repeat(1, 100), (wanted + error).repeat(1, 100))
    assert repeated.se == pytest.approx(once.se)


def test_an_update_without_effect_has_no_slope() -> None:
    found = slope(torch.zeros(3, 4), torch.randn(3, 4))
    assert found.slope is None
    assert not failed(found)


@pytest.mark.parametrize(
    ("value", "se", "wanted"),
    [
        (1.0, 0.01, False),
        (0.9, 0.0, False),
        (0.89, 0.0, True),
        (0.85, 0.03, False),
        (0.8, 0.03, True),
        (1.11, 0.0, True),
        (1.15, 0.03, False),
        (1.2, 0.03, True),
        (0.1, 0.3, True),
    ],
)
def test_a_slope_fails_where_the_probes_leave_no_doubt(value: float, se: float, wanted: bool) -> None:
    assert failed(Slope(value, se, 1.0)) == wanted


@pytest.mark.parametrize(
    ("value", "se", "wanted"),
    [(1.0, 0.024, True), (1.0, 0.026, False), (0.95, 0.01, True), (1.08, 0.01, False), (None, 0.0, False)],
)
def test_a_slope_is_clear_four_errors_within_its_bounds(value, se, wanted) -> None:
    assert gate.clear(Slope(value, se, 0.1)) is wanted


def test_the_first_look_takes_texts_of_all_kinds() -> None:
    texts = [[number] for number in range(24)]
    assert gate.first_look(texts) == texts[::3]
    assert gate.first_look(texts[:9]) == texts[:8]
    assert gate.first_look(texts[:5]) == texts[:5]


def test_more_texts_are_looked_at_only_where_the_first_leave_a_doubt(tmp_path, monkeypatch) -> None:
    told = {gate.FIRST_TEXTS: Slope(1.0, 0.01, 0.1), 24: Slope(0.99, 0.02, 0.1)}
    monkeypatch.setattr(gate, "measure", lambda base, merged, terms, texts, device: told[len(texts)])
    common = {"base_dir": tmp_path, "merged_dir": tmp_path, "terms": [], "device": "cpu"}
    probes = [list(range(101))] * 24
    assert gate.check(probes=probes, **common)["gate_tokens"] == 100 * gate.FIRST_TEXTS
    told[gate.FIRST_TEXTS] = Slope(1.0, 0.03, 0.1)
    metrics = gate.check(probes=probes, **common)
    assert (metrics["gate_tokens"], metrics["gate_slope"]) == (2400, 0.99)
    told[24] = Slope(0.5, 0.02, 0.1)
    with pytest.raises(StageFailedError, match=r"0\.50"):
        gate.check(probes=probes, **common)


def test_probes_are_cut_to_one_length() -> None:
    assert cut([[1, 2, 3], [4, 5, 6, 7]]) == [[1, 2, 3], [4, 5, 6]]
    assert cut([list(range(500))] * 2) == [list(range(gate.TOKENS))] * 2


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_log_probs_are_those_of_base_plus_adapters(tmp_path: Path, kind: tiny.TinyKind) -> None:
    """`exact` in the gate against PEFT's own sum in a float32 model."""
    from transformers import AutoModelForCausalLM

    base = tiny.build(kind, tmp_path / "base")
    adapters = [peft_adapter(base, tmp_path / f"adapter_{seed}", seed, size=0.05) for seed in (1, 2)]
    tokens = torch.tensor(PROBES)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def law(state: dict[str, torch.Tensor] | None) -> torch.Tensor:
        exact = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        if state:
            exact.load_state_dict(state)
        with torch.no_grad():
            laws = exact(tokens).logits[:, :-1].log_softmax(-1)
        return laws.gather(2, tokens[:, 1:, None])[:, :, 0]

    got = logprobs(model, tokens, lambda _name, stored: stored.float())
    torch.testing.assert_close(got, law(None), rtol=1e-4, atol=1e-4)
    total = peft_sum(base, adapters)
    got = logprobs(model, tokens, lambda name, _stored: total[name])
    torch.testing.assert_close(got, law(total), rtol=1e-4, atol=1e-4)
    # The model is given back as it was, in its own dtype.
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_stochastic_passes_and_nearest_fails_on_a_small_update(tmp_path: Path, kind: tiny.TinyKind) -> None:
    base = tiny.build(kind, tmp_path / "base")
    adapter = peft_adapter(base, tmp_path / "adapter", 1, size=2e-4)
    good = merged(base, [adapter], tmp_path / "stochastic", "stochastic")
    bad = merged(base, [adapter], tmp_path / "nearest", "nearest")
    common = {"base_dir": base, "terms": [Term(adapter)], "probes": PROBES, "device": "cpu"}
    metrics = gate.check(merged_dir=good, **common)
    assert metrics["gate_tokens"] == 16 * 47
    assert metrics["gate_slope"] == pytest.approx(1.0, abs=3 * metrics["gate_slope_se"] + 0.02)
    with pytest.raises(StageFailedError, match=r"merge\.rounding"):
        gate.check(merged_dir=bad, **common)


def test_a_merge_without_adapters_has_no_slope(tiny_llama: Path, tmp_path: Path) -> None:
    out = merged(tiny_llama, [], tmp_path / "out", "stochastic")
    metrics = gate.check(base_dir=tiny_llama, merged_dir=out, terms=[], probes=PROBES, device="cpu")
    assert metrics["gate_slope"] is None


def test_a_forgotten_adapter_is_noticed(tmp_path: Path) -> None:
    base = tiny.build("llama", tmp_path / "base")
    adapters = [peft_adapter(base, tmp_path / f"adapter_{seed}", seed, size=0.01) for seed in (1, 2)]
    out = merged(base, adapters[:1], tmp_path / "out", "stochastic")
    terms = [Term(adapter) for adapter in adapters]
    with pytest.raises(StageFailedError, match="of the update's effect"):
        gate.check(base_dir=base, merged_dir=out, terms=terms, probes=PROBES, device="cpu")
