"""Laws against closed forms, the engines and the paper's toy; stored scores at forks and locks."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq

from ssd_loop.engines import truncation
from ssd_loop.errors import BadArtifactError, ConfigError
from ssd_loop.laws import (
    check_truncation,
    cumulative_mass,
    entropy_nats,
    sampling_law,
    support_size,
    tail_mass,
    temper,
    truncate,
    truncate_ranked,
)
from ssd_loop.monitors.positions import K
from ssd_loop.report.forks_and_locks import at_places
from tests.evidence import FORKS, LOCKS, POSITIONS, TEXTS, Array, jittered, scored, text_law

Floats = NDArray[np.float64]


def random_laws(*shape: int, spread: float = 2.0) -> Floats:
    return temper(spread * np.random.default_rng(0).standard_normal(shape), 1.0)


def test_tempering_twice_is_tempering_by_the_product() -> None:
    law = random_laws(3, 4, 50)
    np.testing.assert_allclose(temper(temper(law, 1.6), 0.7), temper(law, 1.12), atol=1e-12)
    np.testing.assert_allclose(temper(law, 1.0), law, atol=1e-12)
    by_hand = np.exp(law) ** (1 / 1.6)
    np.testing.assert_allclose(np.exp(temper(law, 1.6)), by_hand / by_hand.sum(axis=-1, keepdims=True))


def test_entropy_grows_with_temperature_as_the_variance_of_the_law() -> None:
    """The paper's dH/dT = Var(log p) / T^3 (arXiv 2604.01193, appendix B.3)."""
    law, temperature, step = random_laws(6, 40), 1.3, 1e-5
    rise = entropy_nats(temper(law, temperature + step)) - entropy_nats(temper(law, temperature - step))
    mass = np.exp(temper(law, temperature))
    mean = (mass * law).sum(axis=-1, keepdims=True)
    variance = (mass * (law - mean) ** 2).sum(axis=-1)
    np.testing.assert_allclose(rise / (2 * step), variance / temperature**3, rtol=1e-6)


def test_a_temperature_keeps_what_cannot_come_out() -> None:
    with np.errstate(divide="ignore"):
        law = np.log([0.5, 0.0, 0.25, 0.25])
    hot = temper(law, 1e6)
    np.testing.assert_allclose(np.exp(hot), [1 / 3, 0, 1 / 3, 1 / 3], atol=1e-5)
    assert support_size(hot) == 3
    assert entropy_nats(hot) == pytest.approx(np.log(3))


@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [(0, 1.0), (1, 1.0), (20, 0.8), (20, 1.0), (0, 0.8), (0, 0.05), (5000, 0.95), (3, 1e-9)],
)
def test_truncation_is_that_of_the_engines(spread: float, top_k: int, top_p: float) -> None:
    law = random_laws(5, 3000, spread=spread)
    cut = truncate(law, top_k, top_p)
    rows = [torch.tensor(setting).repeat(5) for setting in (top_k, top_p)]
    engines = truncation.truncate(torch.from_numpy(law), *rows).log_softmax(dim=1).numpy()
    np.testing.assert_allclose(np.exp(cut), np.exp(engines), atol=1e-12)
    np.testing.assert_array_equal(cut > -np.inf, engines > -np.inf)


def test_the_nucleus_is_the_smallest_that_reaches_top_p_within_the_top_k() -> None:
    law = np.log([[0.1, 0.5, 0.15, 0.25], [0.25, 0.25, 0.25, 0.25]])

    def kept(top_k: int, top_p: float) -> list[list[float]]:
        found: list[list[float]] = np.exp(truncate(law, top_k, top_p)).round(6).tolist()
        return found

    assert kept(0, 0.7) == [[0, 0.666667, 0, 0.333333], [0.333333, 0.333333, 0.333333, 0]]
    # Of the two likeliest, which hold 0.75, the first has 0.67: enough for 0.6 of them, not for 0.7.
    assert kept(2, 0.6) == [[0, 1, 0, 0], [0.5, 0.5, 0, 0]]
    assert kept(2, 0.7) == [[0, 0.666667, 0, 0.333333], [0.5, 0.5, 0, 0]]
    assert kept(0, 1e-12) == [[0, 1, 0, 0], [1, 0, 0, 0]]
    assert law[0, 1] == np.log(0.5)  # what went in is left alone


def test_one_sort_serves_every_temperature() -> None:
    law = random_laws(4, 200)
    ranked = -np.sort(-law, axis=-1)
    for temperature in (0.4, 1.0, 2.0):
        once = truncate_ranked(temper(ranked, temperature), 30, 0.9)
        each = sampling_law(law, temperature, 30, 0.9)
        np.testing.assert_allclose(once, -np.sort(-each, axis=-1), atol=1e-12)


def test_mass_by_rank_and_beyond() -> None:
    law = np.log([[0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])
    np.testing.assert_allclose(cumulative_mass(law, 2), [[0.6, 0.9], [0.6, 0.8]])
    np.testing.assert_allclose(cumulative_mass(law, 60), [[0.6, 0.9, 1.0], [0.6, 0.8, 1.0]])
    np.testing.assert_allclose(tail_mass(law, 2), [0.1, 0.2])
    np.testing.assert_allclose(tail_mass(law, 3), [0.0, 0.0], atol=1e-15)
    np.testing.assert_allclose(entropy_nats(np.log(np.full(7, 1 / 7))), np.log(7))


def test_settings_that_no_sampler_has_are_refused() -> None:
    law = random_laws(5)
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=f"temperature of {temperature}"):
            temper(law, temperature)
    for top_k, top_p in ((-1, 1.0), (0, 0.0), (0, 1.5), (0, float("nan"))):
        with pytest.raises(ConfigError, match=r"top_[kp] is"):
            check_truncation(top_k, top_p)
        with pytest.raises(ConfigError, match=r"top_[kp] is"):
            truncate(law, top_k, top_p)


# The paper's toy (arXiv 2604.01193, appendix C.4): a machine of 16 tokens with a root, a fork and a lock.
#
#     root --(two good tokens)--> fork --(one)--> lock --(one)--> lock --(one)--> lock --(one)--> PASS
#
# Both paths are alike, and any other token on the way is FAIL. Tokens are in the order of their chance in the
# base. What is printed of the base and of its student, in percent and bits:
TOKENS = 16
PRINTED_LOCK_BITS, PRINTED_FORK_BITS = 1.61, 2.81
T_TRAIN, TRAIN_TOP_P, EVAL_TOP_P = 0.9, 0.85, 0.80
GOOD_ROOTS, RIGHT_FORK, RIGHT_LOCK = (1, 2), 1, 0
GRID = np.arange(0.3, 3.0, 0.001)  # of T_eval

Toy = tuple[Floats, Floats, Floats]  # the laws of root, fork and lock


def with_tail(head: list[float], ratio: float) -> Floats:
    """A law of 16 tokens: printed chances, and the rest of the mass as a geometric tail."""
    tail = ratio ** np.arange(TOKENS - len(head))
    return np.log(np.concatenate([head, (1.0 - sum(head)) * tail / tail.sum()]))


def bits(law: Floats) -> float:
    return float(entropy_nats(law) / np.log(2))


def student_of(law: Floats) -> Floats:
    """Who learns perfectly: the law that the training samples are drawn from."""
    return sampling_law(law, T_TRAIN, 0, TRAIN_TOP_P)


def lock_of_student(ratio: float) -> float:
    return float(np.exp(student_of(with_tail([0.75], ratio))[0]))


@cache
def toy() -> tuple[Toy, Toy]:
    """The base and its student; every number is printed, or follows from printed ones as said."""
    # Ratio of the lock's 15 wrong tokens: from the student's 94.8 %.
    lock = with_tail([0.75], brentq(lambda ratio: lock_of_student(ratio) - 0.948, 0.75, 0.80))
    # Fork: 0.280, 0.148 (the right one), 0.144 and 0.140 are printed, and that the student keeps five. With
    # 34.4 % on its top the fifth has 0.142 to 0.144 in the base; 0.144, a printed chance, is taken. The
    # ratio of the other 11 is from the printed entropy.
    fork_head = [0.280, 0.148, 0.144, 0.144, 0.140]
    fork_ratio = brentq(lambda ratio: bits(with_tail(fork_head, ratio)) - PRINTED_FORK_BITS, 0.1, 0.9)
    # Root: FAIL 0.329 and the good 0.200 and 0.190 are printed. The student's root has a fourth token, and
    # its 40.6 % on FAIL tells that one's chance; nothing is printed of the 12 below, which get the fork's
    # ratio (any up to 0.8 gives the same best rates at top-p 0.80).
    printed = np.array([0.329, 0.200, 0.190]) ** (1 / T_TRAIN)
    fourth = (printed[0] / 0.406 - printed.sum()) ** T_TRAIN
    root = with_tail([0.329, 0.200, 0.190, fourth], fork_ratio)
    base = root, with_tail(fork_head, fork_ratio), lock
    return base, tuple(map(student_of, base))  # type: ignore[return-value]


def pass_rates(laws: Toy, top_p: float, temperatures: Floats = GRID) -> Floats:
    """Share of walks that end in PASS at each temperature, percent."""
    root, fork, lock = (
        np.exp(truncate(np.stack([temper(law, temperature) for temperature in temperatures]), 0, top_p))
        for law in laws
    )  # (temperatures, TOKENS) each
    onwards = fork[:, RIGHT_FORK] * lock[:, RIGHT_LOCK] ** 3
    return 100.0 * np.asarray(sum(root[:, path] * onwards for path in GOOD_ROOTS))


def test_the_student_of_the_toy() -> None:
    """What training leaves of the three laws, to the digits that are printed.

    One printed number is not met: the lock of the base has 1.64 bits here, 0.03 more than the printed 1.61.
    Tail entropy and student exclude each other: with 15 wrong tokens, 1.61 bits need a ratio of
    0.761 instead of 0.786, and the student's lock is then 94.2 / 5.8, not the printed 94.8 / 5.2. The
    printed best temperature rests on the student, so that one is met.
    """
    base, student = toy()
    assert [int(support_size(law)) for law in student] == [4, 5, 2]
    root, fork, lock = (100.0 * np.exp(law) for law in student)
    assert lock[:2].round(1).tolist() == [94.8, 5.2]
    assert fork[[0, RIGHT_FORK]].round(1).tolist() == [34.4, 16.9]
    assert root[0].round(1) == 40.6
    assert bits(base[1]) == pytest.approx(PRINTED_FORK_BITS)
    assert bits(base[2]) - PRINTED_LOCK_BITS == pytest.approx(0.03, abs=0.005)

    ratio = brentq(lambda ratio: bits(with_tail([0.75], ratio)) - PRINTED_LOCK_BITS, 0.5, 0.9)
    assert ratio == pytest.approx(0.761, abs=5e-4)
    assert 100.0 * lock_of_student(ratio) == pytest.approx(94.2, abs=0.05)


def test_pass_rates_of_the_toy() -> None:
    """No temperature of the base reaches the student: 8.32 % at 0.639 printed, 13.77 % at 2.091.

    Found 8.31 % at 0.637 and 13.77 % at 2.094. Pairs are printed for a low, a medium and a high temperature,
    base 6.4 / 6.4 / 0.3 %, student 5.5 / 10.6 / 13.8 %. For each pair there is one temperature (found: 0.5,
    1.0 and 2.09, not taken from the paper) at which both numbers are met to 0.06 points.
    """
    base, student = (pass_rates(laws, EVAL_TOP_P) for laws in toy())
    assert base.max() == pytest.approx(8.32, abs=0.02)
    assert GRID[base.argmax()] == pytest.approx(0.639, abs=0.003)
    assert student.max() == pytest.approx(13.77, abs=0.01)
    assert GRID[student.argmax()] == pytest.approx(2.091, abs=0.005)
    for of_base, of_student in ((6.4, 5.5), (6.4, 10.6), (0.3, 13.8)):
        apart = np.maximum(abs(base - of_base), abs(student - of_student))
        assert apart.min() < 0.06


def test_the_toy_student_is_ahead_over_evaluation_truncations() -> None:
    """For top-p from 0.65 to 0.90; the gap is 5.4 points at 0.80 and 1.4 at 0.90; found 5.47 and 1.32."""
    base, student = toy()
    gaps = {
        top_p: pass_rates(student, top_p).max() - pass_rates(base, top_p).max()
        for top_p in (0.65, 0.70, 0.75, 0.80, 0.85, 0.90)
    }
    assert min(gaps.values()) == gaps[0.90] > 1.0
    assert max(gaps.values()) == gaps[0.80]
    assert gaps[0.80] == pytest.approx(5.4, abs=0.1)
    assert gaps[0.90] == pytest.approx(1.4, abs=0.1)


def test_without_truncation_the_toy_student_is_the_base_at_the_product_of_temperatures() -> None:
    """The paper's remark B.4: then decoding alone can do what training did."""
    base = toy()[0]
    student: Toy = tuple(sampling_law(law, T_TRAIN, 0, 1.0) for law in base)  # type: ignore[assignment]
    expected = pass_rates(base, EVAL_TOP_P, T_TRAIN * GRID)
    np.testing.assert_allclose(pass_rates(student, EVAL_TOP_P), expected)


def sharpened(law: Array) -> Array:
    return np.exp(temper(np.log(law), 0.5))


def test_forks_and_locks_of_two_rounds() -> None:
    rng = np.random.default_rng(3)
    law = jittered(text_law(rng), rng, 1e-6)  # no two positions are tied
    found = at_places(scored(law), scored(sharpened(law)))
    assert found == json.loads(json.dumps(found))
    assert found["forks"]["positions"] == TEXTS * POSITIONS // 5  # the fifth with the highest entropy
    assert found["locks"]["positions"] == TEXTS * POSITIONS // 2
    for place, columns in (("forks", FORKS), ("locks", LOCKS)):  # how the law was built
        for which, of in (("baseline", law), ("current", sharpened(law))):
            own = np.log(of[:, columns].reshape(-1, of.shape[-1]))
            top, tail = -np.sort(-own, axis=-1)[:, :K], tail_mass(own, K)
            with_rest = np.concatenate([top, np.log(tail)[:, None]], axis=1)
            needed = [1 + next((i for i in range(K) if np.exp(row[: i + 1]).sum() >= 0.95), K) for row in top]
            assert found[place][which] == {
                "entropy_nats": pytest.approx(entropy_nats(with_rest).mean(), abs=1e-5),
                "support_tokens": pytest.approx(np.mean(needed)),
                "support_capped_share": pytest.approx(np.mean(np.array(needed) == K + 1)),
                "tail_mass": pytest.approx(tail.mean(), abs=1e-5),
            }
    assert found["forks"]["baseline"]["support_tokens"] > found["forks"]["current"]["support_tokens"]


def test_where_20_tokens_do_not_hold_95_percent_the_support_is_21() -> None:
    flat = np.full((12, 10, 40), 1 / 40)
    found = at_places(scored(flat), scored(flat))["forks"]["current"]
    assert found["support_tokens"] == 21.0
    assert found["support_capped_share"] == 1.0
    assert found["tail_mass"] == pytest.approx(0.5)
    assert found["entropy_nats"] == pytest.approx(0.5 * np.log(40) + 0.5 * np.log(2))


def test_a_law_that_is_not_finite_is_null() -> None:
    scores = scored(text_law(np.random.default_rng(0)))
    broken = [replace(scores[0], top_logprobs=(float("nan"),) * len(scores[0].top_logprobs)), *scores[1:]]
    found = at_places(scores, broken)
    assert found["locks"]["current"]["entropy_nats"] is None
    assert found["locks"]["baseline"]["entropy_nats"] is not None


def test_scores_of_other_texts_are_refused() -> None:
    scores = scored(text_law(np.random.default_rng(0)))
    shorter = [replace(scores[0], logprobs=scores[0].logprobs[1:]), *scores[1:]]
    for other in (scores[1:], scores[::-1], shorter):
        with pytest.raises(BadArtifactError, match="not of the same texts"):
            at_places(scores, other)
