"""Next-token laws: what a temperature and a truncation make of them, and how much they leave open.

A law is an array (..., V) of log-probs, nats, whose last axis is the vocabulary; -inf is a token that cannot
come. Everything here is numpy and takes any leading axes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssd_loop.errors import ConfigError

Floats = NDArray[np.float64]


def check_truncation(top_k: int, top_p: float) -> None:
    """Refuse a truncation that no sampler has.

    Raises:
        ConfigError: `top_k` is negative, or `top_p` is not above 0 and at most 1.
    """
    if top_k < 0:
        raise ConfigError(f"top_k is {top_k}; it needs 0 (off) or a number of tokens")
    if not 0.0 < top_p <= 1.0:
        raise ConfigError(f"top_p is {top_p}; it needs a mass above 0 and at most 1 (off)")


def temper(law: Floats, temperature: float) -> Floats:
    """The law with every probability to the power 1 / temperature, renormalised; the ranking stays.

    Source: arXiv 2604.01193, Lemma B.1: tempering twice is tempering by the product.

    Args:
        law: Log-probs (..., V), nats; they need not sum to one.
        temperature: Above 0; 1 changes nothing.

    Raises:
        ConfigError: `temperature` is not above 0.
    """
    if not temperature > 0.0:
        raise ConfigError(f"a temperature of {temperature} leaves no law; it needs to be above 0")
    return _normalised(law / temperature)


def truncate(law: Floats, top_k: int, top_p: float) -> Floats:
    """The law cut to its top k, then to its nucleus, renormalised; what is cut is at -inf.

    The nucleus is the smallest set of likeliest tokens, among the top k, whose mass reaches `top_p` (Holtzman
    et al. 2020, section 3.1); the likeliest token always stays. The engines cut by the same rule. Of equal
    tokens the one with the lower id comes first.

    Args:
        law: Log-probs (..., V), nats.
        top_k: Tokens kept at most; 0 is off.
        top_p: Mass to reach; 1 is off.

    Raises:
        ConfigError: see `check_truncation`.
    """
    order = np.argsort(-law, axis=-1, kind="stable")
    cut = np.empty_like(law)
    ranked = np.take_along_axis(law, order, axis=-1)
    np.put_along_axis(cut, order, truncate_ranked(ranked, top_k, top_p), axis=-1)
    return cut


def truncate_ranked(law: Floats, top_k: int, top_p: float) -> Floats:
    """`truncate` for a law whose tokens come likeliest first; temperature keeps that order.

    Raises:
        ConfigError: see `check_truncation`.
    """
    check_truncation(top_k, top_p)
    top = _normalised(law[..., :top_k] if top_k else law)
    if top_p < 1.0:
        mass = np.exp(top).cumsum(axis=-1)
        # A token stays while the mass before it has not reached top_p: the likeliest always stays.
        reached = mass[..., :-1] >= top_p
        top[..., 1:][reached] = -np.inf
        top = _normalised(top)
    cut = np.full_like(law, -np.inf)
    cut[..., : top.shape[-1]] = top
    return cut


def sampling_law(law: Floats, temperature: float, top_k: int, top_p: float) -> Floats:
    """The law that a sampler draws from: temperature, then top-k, then top-p (arXiv 2604.01193, app. A).

    With the settings of `sample` it is also the law that a student fits who learns perfectly from the
    samples: the paper's target q (appendix B.1).

    Args:
        law: The model's own log-probs (..., V), nats.
        temperature: Above 0.
        top_k: 0 is off.
        top_p: 1 is off.

    Raises:
        ConfigError: see `temper` and `check_truncation`.
    """
    return truncate(temper(law, temperature), top_k, top_p)


def support_size(law: Floats) -> NDArray[np.int64]:
    """How many tokens can come: (...)."""
    return np.asarray((law > -np.inf).sum(axis=-1))


def entropy_nats(law: Floats) -> Floats:
    """Entropy of the law, nats: (...)."""
    mass = np.exp(law)
    with np.errstate(invalid="ignore"):  # 0 times -inf is 0 here: a token that cannot come adds nothing
        return np.asarray(-np.where(mass == 0.0, 0.0, mass * law).sum(axis=-1))


def cumulative_mass(law: Floats, ranks: int) -> Floats:
    """Mass of the likeliest 1, 2, ..., `ranks` tokens: (..., min(ranks, V))."""
    likeliest = -np.sort(-law, axis=-1)[..., :ranks]
    return np.asarray(np.exp(likeliest).cumsum(axis=-1))


def tail_mass(law: Floats, k: int) -> Floats:
    """Mass outside of the k likeliest tokens, k of 1 or more: (...)."""
    return np.clip(1.0 - cumulative_mass(law, k)[..., -1], 0.0, 1.0)


def _normalised(law: Floats) -> Floats:
    """A new array with the same odds whose probabilities sum to one."""
    shifted: Floats = law - law.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
