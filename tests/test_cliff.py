"""The probe inside training."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from ssd_loop.monitors.cliff import TOKENS, Probe, is_cliff, text_nll
from tests import tiny

VOCABULARY = 40
RNG = np.random.default_rng(0)
TEXTS = [RNG.integers(VOCABULARY, size=length).tolist() for length in (30, 12, 70, 12, 21)]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny.build_model(request.param, VOCABULARY, [1, 2], 0)


def by_hand(model: Any, text: list[int], tokens: int) -> float:
    """Mean NLL of a text's first `tokens` after its first one, alone and in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([text[: tokens + 1]])).logits[0].double().numpy()
    total = 0.0
    for place in range(tokens):
        row = logits[place]
        total += math.log(np.exp(row - row.max()).sum()) + row.max() - row[text[place + 1]]
    return float(total / tokens)


def test_the_nll_is_that_of_each_texts_first_tokens(model: Any) -> None:
    found = text_nll(model, TEXTS)
    assert found.shape == (5,)
    assert found.tolist() == pytest.approx([by_hand(model, text, 11) for text in TEXTS], abs=1e-5)


def test_long_texts_are_cut(model: Any) -> None:
    texts = [RNG.integers(VOCABULARY, size=TOKENS + extra).tolist() for extra in (1, 30)]
    expected = [by_hand(model, text, TOKENS) for text in texts]
    assert text_nll(model, texts).tolist() == pytest.approx(expected, abs=1e-5)
    assert text_nll(model, texts[1:]).tolist() == pytest.approx(expected[1:], abs=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(model: Any, training: bool) -> None:
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    text_nll(model, TEXTS)
    assert model.training is training
    assert {module.training for module in model.modules()} == {training}
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
    model.eval()


class Broken(torch.nn.Module):
    device = torch.device("cpu")

    def forward(self, input_ids: Any) -> Any:
        raise RuntimeError("out of memory")


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    model = Broken().train()
    with pytest.raises(RuntimeError, match="out of memory"):
        text_nll(model, TEXTS)
    assert model.training
    assert torch.is_grad_enabled()


def test_dropout_is_off_while_it_is_measured() -> None:
    model = tiny.build_model("llama", VOCABULARY, [1, 2], 0)
    for layer in model.model.layers:
        layer.mlp = torch.nn.Sequential(layer.mlp, torch.nn.Dropout(0.5))
    model.train()
    assert (text_nll(model, TEXTS) == text_nll(model, TEXTS)).all()


def test_a_cliff_by_hand() -> None:
    rise = np.array([0.1, 0.2, 0.3, 0.4])
    bound = rise.mean() - 4.0 * rise.std(ddof=1) / 2.0
    assert is_cliff(rise, bound - 1e-9)
    assert not is_cliff(rise, bound + 1e-9)


@pytest.mark.parametrize(
    ("rise", "said"),
    [
        ([0.0] * 24, False),
        ([0.1] * 24, False),  # the margin itself
        ([0.11] * 24, True),
        ([-5.0] * 24, False),
        ([0.3, 0.3, 0.3, 0.31], True),
        ([3.0, 0.0, 0.0, 0.0], False),  # one text alone is no cliff
        ([0.2], True),
        ([0.05], False),
        ([0.0] * 23 + [math.nan], True),
        ([0.0] * 23 + [math.inf], True),
        ([-math.inf] + [0.0] * 23, True),
        ([math.nan], True),
    ],
)
def test_what_is_a_cliff(rise: list[float], said: bool) -> None:
    assert is_cliff(np.array(rise), 0.1) is said


def test_noise_is_hardly_ever_a_cliff() -> None:
    """A rise that is the margin itself in the mean, 24 texts, in 5,000 trainings."""
    rises = np.random.default_rng(3).normal(0.1, 0.2, (5000, 24))
    assert sum(is_cliff(rise, 0.1) for rise in rises) <= 10


def scripted(monkeypatch: pytest.MonkeyPatch, *values: list[float]) -> None:
    left = [np.array(value) for value in values]
    monkeypatch.setattr("ssd_loop.monitors.cliff.text_nll", lambda model, texts: left.pop(0))


def test_a_probe_compares_with_its_first_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [1.0, 2.0], [1.05, 2.05], [0.9, 1.9], [1.3, 2.3])
    probe = Probe(TEXTS[:2], margin=0.1)
    assert [probe.measure(None, step) for step in (0, 8, 16, 24)] == [False, False, False, True]
    assert probe.cliff == 24
    rows = probe.rows()
    assert [row["step"] for row in rows] == [0, 8, 16, 24]
    assert [row["nll"] for row in rows] == pytest.approx([1.5, 1.55, 1.4, 1.8])
    assert [row["rise"] for row in rows] == pytest.approx([0.0, 0.05, -0.1, 0.3])
    metrics = probe.metrics()
    assert metrics == {"probe_rise_max": pytest.approx(0.3), "cliff_step": 24}


def test_a_small_rise_in_every_step_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, *([1.0 + 0.03 * step] * 4 for step in range(6)))
    probe = Probe(TEXTS[:4], margin=0.1)
    assert [probe.measure(None, step) for step in range(6)] == [False] * 4 + [True] * 2


def test_a_probe_without_a_cliff_has_no_step_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [1.0, 2.0], [0.9, 1.8])
    probe = Probe(TEXTS[:2], margin=0.1)
    assert not probe.measure(None, 0)
    assert not probe.measure(None, 8)
    assert probe.cliff is None
    assert probe.metrics() == {"probe_rise_max": 0.0}


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_rows_that_are_not_finite_are_null(monkeypatch: pytest.MonkeyPatch, broken: float) -> None:
    scripted(monkeypatch, [1.0, 2.0], [1.0, broken])
    probe = Probe(TEXTS[:2], margin=0.1)
    assert not probe.measure(None, 0)
    assert probe.measure(None, 8)
    assert probe.rows()[1] == {"step": 8, "nll": None, "rise": None}
    assert probe.metrics() == {"probe_rise_max": 0.0, "cliff_step": 8}
    json.dumps([probe.rows(), probe.metrics()], allow_nan=False)


def test_a_model_that_starts_broken_is_a_cliff_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [math.nan, 1.0])
    probe = Probe(TEXTS[:2], margin=0.1)
    assert probe.measure(None, 0)
    assert probe.metrics() == {"probe_rise_max": 0.0, "cliff_step": 0}


def test_weights_that_are_ruined_are_a_cliff() -> None:
    model = tiny.build_model("llama", VOCABULARY, [1, 2], 0)
    probe = Probe([RNG.integers(VOCABULARY, size=30).tolist() for _ in range(24)], margin=0.1)
    assert not probe.measure(model, 0)
    assert not probe.measure(model, 1)
    assert probe.rows()[1]["rise"] == 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0)
    assert probe.measure(model, 2)
    assert probe.cliff == 2
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    assert probe.measure(model, 3)
    assert probe.rows()[3]["nll"] is None


def test_a_loss_that_is_not_finite_ends_on_a_row_without_numbers() -> None:
    probe = Probe([[1, 2, 3], [4, 5, 6]], 0.1)
    probe._nll[0] = np.array([1.0, 2.0])
    probe.diverge(3)
    assert probe.rows()[-1] == {"step": 3, "nll": None, "rise": None}
    assert probe.metrics() == {"probe_rise_max": 0.0, "cliff_step": 3}
