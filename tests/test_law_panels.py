"""The four panels of two models: against single positions, and on tiny models whose relation is known."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ssd_loop.engines.truncation import truncate
from ssd_loop.errors import BadArtifactError, ConfigError
from ssd_loop.laws import entropy_nats, sampling_law, support_size, temper
from ssd_loop.problems import load_reference
from ssd_loop.report.law_panels import RANKS, TEMPERATURES, Measured, compare, measure, panels, show

TOKENS = 20  # of each reference text


def copy(model: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> str:
    """The model with other weights."""
    shutil.copytree(model, to)
    weights = load_file(to / "model.safetensors")
    change(weights)
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return str(to)


def halve_logits(weights: dict[str, torch.Tensor]) -> None:
    weights["model.norm.weight"] *= 0.5  # exact in any float


def found_for(base: str, other: str, **settings: Any) -> dict[str, Any]:
    return compare(base, other, **{"reference_tokens": TOKENS, "device": "cpu", **settings})


@pytest.mark.parametrize(("top_k", "top_p"), [(20, 0.8), (0, 0.8), (7, 1.0), (0, 1.0)])
def test_measured_is_what_a_sampler_has_at_each_position(top_k: int, top_p: float) -> None:
    laws = temper(3.0 * np.random.default_rng(0).standard_normal((5, 300)), 1.0)
    ranked = -np.sort(-laws, axis=-1)
    found = measure(ranked if top_k == 0 else ranked[:, :RANKS], top_k, top_p)
    for column, temperature in enumerate(TEMPERATURES):
        sampled = sampling_law(laws, temperature, top_k, top_p)
        np.testing.assert_array_equal(found.kept_tokens[:, column], support_size(sampled))
        np.testing.assert_allclose(found.entropy_nats[:, column], entropy_nats(sampled), atol=1e-12)
    np.testing.assert_allclose(found.mass, np.exp(ranked[:, :RANKS]).cumsum(axis=1))


def test_work_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ranked = -np.sort(-temper(np.random.default_rng(1).standard_normal((11, 90)), 1.0), axis=-1)
    whole = measure(ranked, 0, 0.8)
    monkeypatch.setattr("ssd_loop.report.law_panels.NUMBERS_AT_ONCE", 4 * 90)
    pieces = measure(ranked, 0, 0.8)
    np.testing.assert_array_equal(whole.kept_tokens, pieces.kept_tokens)
    np.testing.assert_array_equal(whole.entropy_nats, pieces.entropy_nats)


def test_bins_hold_the_positions_where_the_base_is_about_as_sure() -> None:
    columns = len(TEMPERATURES)
    top_20 = [0.5, 0.95, 0.97, 0.9991, 1.0]

    def measured(kept: list[float], entropy: list[float], mass: list[float]) -> Measured:
        """The same at every temperature; the mass is that of the 20 likeliest."""
        by_rank = np.zeros((len(mass), RANKS))
        by_rank[:, 19] = mass
        return Measured(by_rank, *(np.tile(np.array([of]).T, columns) for of in (kept, entropy)))

    base = measured([4, 2, 2, 1, 1], [1.0, 0.5, 0.3, 0.0, 0.0], top_20)
    other = measured([6, 5, 3, 1, 2], [1.5, 1.0, 0.6, 0.2, 0.0], top_20[::-1])
    found = panels(base, other)
    assert found == json.loads(json.dumps(found))
    assert found["positions"] == 5
    assert found["ranks"] == list(range(1, 61))
    assert found["kept_tokens"]["base"] == pytest.approx([2.0] * columns)
    assert found["entropy_nats"]["other"] == pytest.approx([0.66] * columns)
    assert found["cumulative_mass"]["base"] == pytest.approx([0.0] * 19 + [np.mean(top_20)] + [0.0] * 40)
    bins = found["bins"]
    assert [(part["from"], part["to"]) for part in bins] == [
        (0, 0.95),
        (0.95, 0.99),
        (0.99, 0.999),
        (0.999, 1),
    ]
    assert [part["positions"] for part in bins] == [1, 2, 0, 2]
    assert bins[1]["kept_tokens"]["other"] == pytest.approx([4.0] * columns)
    assert bins[1]["kept_tokens_ratio"] == pytest.approx([2.0] * columns)
    assert bins[1]["entropy_nats_ratio"] == pytest.approx([2.0] * columns)
    assert bins[2]["kept_tokens"] == {"base": None, "other": None}
    assert bins[2]["kept_tokens_ratio"] is None
    assert bins[3]["entropy_nats_ratio"] == [None] * columns  # nothing to divide by


def test_a_model_is_like_itself(tiny_llama: Path) -> None:
    found = found_for(str(tiny_llama), str(tiny_llama))
    texts = len(load_reference())
    assert (found["texts"], found["positions"]) == (texts, texts * (TOKENS - 1))
    for panel in ("cumulative_mass", "kept_tokens", "entropy_nats"):
        assert found[panel]["base"] == found[panel]["other"]
    for part in found["bins"]:
        if part["positions"]:
            assert set(part["kept_tokens_ratio"]) == {1.0}
    assert sum(part["positions"] for part in found["bins"]) == found["positions"]


@pytest.mark.parametrize("top_k", [20, 0])
def test_a_student_of_temperature_2_is_the_base_at_twice_the_temperature(
    tiny_llama: Path, tmp_path: Path, top_k: int
) -> None:
    """The paper's lemma B.1, on a model whose logits are halved."""
    student = copy(tiny_llama, tmp_path / "student", halve_logits)
    found = found_for(str(tiny_llama), student, top_k=top_k)
    cold = [TEMPERATURES.index(t) for t in TEMPERATURES if 2 * t <= 2.0]
    hot = [TEMPERATURES.index(round(2 * TEMPERATURES[i], 1)) for i in cold]
    for panel in ("kept_tokens", "entropy_nats"):
        base, other = (np.array(found[panel][name]) for name in ("base", "other"))
        np.testing.assert_allclose(other[cold], base[hot], rtol=1e-3)
        assert (other > base).all()
    base, other = (np.array(found["cumulative_mass"][name]) for name in ("base", "other"))
    assert (other < base).all()


@pytest.mark.parametrize(("top_k", "top_p"), [(20, 0.8), (0, 0.6)])
def test_tokens_left_are_those_that_the_engine_would_draw_from(
    tiny_qwen3: Path, top_k: int, top_p: float
) -> None:
    found = found_for(str(tiny_qwen3), str(tiny_qwen3), top_k=top_k, top_p=top_p)
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen3)
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32).eval()
    column = TEMPERATURES.index(1.6)
    kept = []
    for text in load_reference():
        ids = tokenizer(text.text, add_special_tokens=False, return_tensors="pt")["input_ids"][:, :TOKENS]
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, :-1]
        rows = [torch.tensor(setting).repeat(len(logits)) for setting in (top_k, top_p)]
        kept += torch.isfinite(truncate(logits / 1.6, *rows)).sum(dim=1).tolist()
    assert found["kept_tokens"]["base"][column] == pytest.approx(np.mean(kept), abs=0.01)


def test_tables_show_the_numbers(tiny_llama: Path, tmp_path: Path) -> None:
    student = copy(tiny_llama, tmp_path / "student", halve_logits)
    found = found_for(str(tiny_llama), student)
    out = io.StringIO()
    show(found, Console(file=out, width=120))
    text = out.getvalue()
    assert f"base: {tiny_llama}; other: {student}" in text
    assert f"{found['positions']} positions of {found['texts']} human-written texts" in text
    assert "top-k 20, top-p 0.8" in text
    assert f"{100 * found['cumulative_mass']['other'][19]:.2f}" in text
    assert f"{found['kept_tokens']['other'][3]:.3f}" in text
    widest = max(found["bins"], key=lambda part: part["positions"])
    assert f"n = {widest['positions']}" in text
    assert f"{widest['kept_tokens_ratio'][6]:.3f}, {widest['entropy_nats_ratio'][6]:.3f}" in text


def test_models_with_different_tokenizers_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    a, b = sorted(vocabulary, key=vocabulary.get)[100:102]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"llama and .*other have different tokenizers"):
        found_for(str(tiny_llama), str(other))


def test_a_model_without_numbers_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"] *= torch.nan

    with pytest.raises(BadArtifactError, match=r"law of .*spoilt is not a number"):
        found_for(str(tiny_llama), copy(tiny_llama, tmp_path / "spoilt", spoil))


@pytest.mark.parametrize("settings", [{"top_k": -1}, {"top_p": 0.0}, {"reference_tokens": 15}])
def test_settings_out_of_range_are_refused_before_any_model_is_looked_for(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ConfigError, match=f"^{name} is"):
        found_for("no-such-model", "no-such-model", **settings)
