"""The simulated model: tables of softmax rows, so that the true value of every monitor is known.

A model is a law over 94 programs for each of 150 held-out and 60 out-of-domain problems, and a law over 21
outcomes at each of 24 x 128 positions of reference text. Rounds of training are operators on these tables
(`modes.py`); monitors see samples from them. Source: collapse literature (research digest), section 8.1.

Sizes differ from the digest's "about 60 programs" for one reason: with 60, round 0 itself repeats most of
its programs within 48 archived samples, and no recycling could worsen novelty by twice its margin of .10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from ssd_loop.monitors import suite
from ssd_loop.monitors.draws import Draws
from ssd_loop.monitors.positions import Positions

Floats = NDArray[np.float64]

HELDOUT, OOD = 150, 60  # problems
SAMPLES, OOD_SAMPLES = 16, 4  # per problem and round
RIGHT_CLASSES, RIGHT_TWINS = 32, 8  # AST classes of right programs; so many have two cosmetic variants
WRONG_CLASSES, WRONG_TWINS = 40, 10
BEHAVIOURS = 10  # of wrong programs, shared by several of them
RIGHT = RIGHT_CLASSES + RIGHT_TWINS
WRONG = WRONG_CLASSES + WRONG_TWINS
HOLE = RIGHT + WRONG  # the program that returns what visible tests expect
CUT, LOOP, BROKEN = HOLE + 1, HOLE + 2, HOLE + 3  # runs into the token limit; loops; does not parse
PROGRAMS = BROKEN + 1
CLASS_ZIPF = 0.7  # exponent of the law over AST classes of one problem
POPULAR_TASKS, POPULAR_MASS = 0.3, 0.4  # share of tasks with a popular mistake, and its mass (digest, C5)
CAP = 1024.0  # tokens at which an answer is cut
TOKENS, TOKENS_SD = 120.0, 0.4  # median program length, and sd of its log
TEXTS, TEXT_TOKENS, OUTCOMES = 24, 128, 21
DOMAINS = np.repeat([0, 1, 2], [12, 6, 6])  # of the texts: in-loop, near, far
REST = 180  # tokens that share the mass outside of the 20 likeliest
RICHNESS_M = 4  # m of distinct@m: half of the problems have 4 right ones of 16, few have 8
COVERAGE_K = 8


@dataclass(frozen=True)
class World:
    """What never changes: problems, programs, texts.

    Attributes:
        law: (150, 94) round 0's law of the held-out programs.
        ood: (60, 94) the same out of domain.
        shape: (94,) AST class; -1 does not parse.
        behaviour: (210, 94) behaviour class, 0 right, -1 did not run; held-out rows first.
        accepted: (210, 94) whether the run's filter accepts it.
        log_tokens: (210, 94) log length.
        tier: (150,) 0 easy, 1 middle, 2 hard, by construction.
        text: (24, 128, 21) round 0's law of the reference texts; the last outcome is the rest.
        human: (24, 128) the human's token.
    """

    law: Floats
    ood: Floats
    shape: NDArray[np.int32]
    behaviour: NDArray[np.int32]
    accepted: NDArray[np.bool_]
    log_tokens: Floats
    tier: NDArray[np.int64]
    text: Floats
    human: NDArray[np.int64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """(94,) which programs pass the hidden tests."""
        return np.arange(PROGRAMS) < RIGHT


def zipf(n: int, exponent: float = 1.0) -> Floats:
    """Zipf's law over n outcomes."""
    weight = np.arange(1, n + 1, dtype=float) ** -exponent
    return weight / weight.sum()


def sharpened(law: Floats, exponent: float) -> Floats:
    """p^exponent, normalised: sampling at temperature 1/exponent and learning it perfectly."""
    with np.errstate(divide="ignore"):
        logs = exponent * np.log(law)
    logs -= logs.max(axis=-1, keepdims=True)
    weight = np.exp(logs)
    return weight / weight.sum(axis=-1, keepdims=True)


def nucleus(law: Floats, mass: float) -> Floats:
    """Top-p sampling learned perfectly: the least set of likeliest outcomes that holds `mass`."""
    order = np.argsort(-law, axis=-1, kind="stable")
    ranked = np.take_along_axis(law, order, axis=-1)
    kept = np.where(np.cumsum(ranked, axis=-1) - ranked < mass, ranked, 0.0)
    out = np.zeros_like(law)
    np.put_along_axis(out, order, kept, axis=-1)
    return out / out.sum(axis=-1, keepdims=True)


def resampled(law: Floats, n: int, kept: float, rng: np.random.Generator) -> Floats:
    """Learning n samples per row in place of the law: (1 - kept) x their shares + kept x the law."""
    flat = law.reshape(-1, law.shape[-1])
    flat = flat / flat.sum(axis=-1, keepdims=True)
    shares = rng.multinomial(n, flat).reshape(law.shape) / n
    return (1.0 - kept) * shares + kept * law


def conditioned(law: Floats, on: NDArray[np.bool_]) -> Floats:
    """The law given that the outcome is in `on`; the law itself where that has no mass."""
    part = law * on
    mass = part.sum(axis=-1, keepdims=True)
    return np.where(mass > 0.0, part / np.maximum(mass, 1e-300), law)


def with_odds(law: Floats, right: NDArray[np.bool_], log_factor: Floats | float) -> Floats:
    """The law with the odds of the right programs times exp(log_factor), (...) or (..., n)."""
    weight = law * np.where(right, np.exp(np.asarray(log_factor))[..., None], 1.0)
    return weight / weight.sum(axis=-1, keepdims=True)


def _rows(n: int, tier: NDArray[np.int64], rng: np.random.Generator) -> tuple[Floats, NDArray[np.int32]]:
    """Laws of n problems, and the behaviour of their programs."""
    bounds = np.array([(0.70, 0.97), (0.30, 0.70), (0.03, 0.30)])
    solve = rng.uniform(*bounds[tier].T)
    popular = np.zeros(n, bool)
    could = np.flatnonzero(solve < 0.5)  # a mistake of 40 % leaves room for them
    popular[rng.choice(could, round(POPULAR_TASKS * n), replace=False)] = True
    law = np.zeros((n, PROGRAMS))
    behaviour = np.full((n, PROGRAMS), -1, np.int32)
    for i in range(n):
        right = _with_twins(rng.permutation(zipf(RIGHT_CLASSES, CLASS_ZIPF)), RIGHT_TWINS, rng)
        wrong = _with_twins(rng.permutation(zipf(WRONG_CLASSES, CLASS_ZIPF)), WRONG_TWINS, rng)
        kinds = rng.choice(BEHAVIOURS, WRONG_CLASSES, p=zipf(BEHAVIOURS, 0.8)) + 1
        kinds[:BEHAVIOURS] = np.arange(BEHAVIOURS) + 1
        kinds = np.concatenate([kinds, kinds[:WRONG_TWINS]])
        rest = np.array([0.005, 0.004, 0.003, 0.008])  # hole, cut, loop, does not parse
        if popular[i]:
            shared = kinds == 1
            share = POPULAR_MASS / (1.0 - solve[i] - rest.sum())
            wrong = np.where(shared, share * wrong / wrong[shared].sum(), wrong)
            wrong = np.where(shared, wrong, (1.0 - share) * wrong / wrong[~shared].sum())
        law[i] = np.concatenate([solve[i] * right, (1.0 - solve[i] - rest.sum()) * wrong, rest])
        behaviour[i, :RIGHT] = 0
        behaviour[i, RIGHT:HOLE] = kinds
        behaviour[i, HOLE] = BEHAVIOURS + 1
    return law, behaviour


def _with_twins(law: Floats, twins: int, rng: np.random.Generator) -> Floats:
    """The law over programs: the first classes have two cosmetic variants, which share their mass."""
    share = rng.uniform(0.2, 0.5, twins)
    first = law.copy()
    first[:twins] *= 1.0 - share
    return np.concatenate([first, law[:twins] * share])


def _text(rng: np.random.Generator) -> tuple[Floats, NDArray[np.int64]]:
    """A fifth of the positions are forks, half are locks (digest, 3.4); the human's tokens follow the law."""
    kind = rng.choice(3, (TEXTS, TEXT_TOKENS), p=[0.2, 0.3, 0.5])
    off = np.exp(rng.normal(np.log([0.75, 0.25, 0.008])[kind], np.array([0.12, 0.5, 1.0])[kind]))
    off = np.minimum(off, 0.9)
    tail = zipf(20, 1.0)[1:]
    noise = np.exp(rng.normal(0.0, 0.7, (TEXTS, TEXT_TOKENS, 19)))
    others = tail * noise
    others /= others.sum(axis=-1, keepdims=True)
    rest = 0.05 * off
    law = np.concatenate([(1.0 - off)[..., None], (off - rest)[..., None] * others, rest[..., None]], axis=-1)
    explicit = law[..., :-1] / law[..., :-1].sum(axis=-1, keepdims=True)
    human = (rng.random((TEXTS, TEXT_TOKENS, 1)) > explicit.cumsum(axis=-1)).sum(axis=-1)
    return law, np.minimum(human, OUTCOMES - 2)


def make(seed: int = 0) -> World:
    """The world; the same seed gives the same one."""
    rng = np.random.default_rng([seed, 1])
    tier = np.arange(HELDOUT) * 3 // HELDOUT
    law, behaviour = _rows(HELDOUT, tier, rng)
    ood, ood_behaviour = _rows(OOD, np.arange(OOD) * 3 // OOD, rng)
    classes = [np.arange(RIGHT_CLASSES), np.arange(RIGHT_TWINS)]
    wrong = RIGHT_CLASSES + np.arange(WRONG_CLASSES)
    classes += [
        wrong,
        wrong[:WRONG_TWINS],
        [RIGHT_CLASSES + WRONG_CLASSES],
        [-1, RIGHT_CLASSES + WRONG_CLASSES + 1, -1],
    ]
    accepted = np.zeros((HELDOUT + OOD, PROGRAMS), bool)
    accepted[:, :RIGHT] = rng.random((HELDOUT + OOD, RIGHT)) < 0.97  # visible tests are a little flaky
    accepted[:, RIGHT:HOLE] = rng.random((HELDOUT + OOD, WRONG)) < 0.10  # and miss a tenth of the mistakes
    accepted[:, HOLE] = True
    problem = rng.normal(np.log(TOKENS), 0.3, (HELDOUT + OOD, 1))
    log_tokens = problem + rng.normal(0.0, np.sqrt(TOKENS_SD**2 - 0.3**2), (HELDOUT + OOD, PROGRAMS))
    log_tokens[:, [CUT, LOOP]] = np.log(CAP)
    text, human = _text(rng)
    return World(
        law=law,
        ood=ood,
        shape=np.concatenate(classes).astype(np.int32),
        behaviour=np.concatenate([behaviour, ood_behaviour]),
        accepted=accepted,
        log_tokens=log_tokens,
        tier=tier,
        text=text,
        human=human,
    )


@dataclass(frozen=True)
class State:
    """The model after some round. Laws may have a leading axis of runs.

    Attributes:
        law: (..., 150, 94) of the held-out programs.
        ood: (..., 60, 94) of the programs out of domain.
        twin: (..., 150) pass@1 of the renamed twins; None where it is that of `law`.
        exponent: Of the reference texts' laws: above 1 sharpened, below 1 flattened.
        tilt: (3,) loss of logit of the human's token, by domain of the text.
        text_noise: sd of the logit noise of the human's token at every position, between trainings.
        text_shift: sd of the logit noise that all positions share, between trainings.
        text: (..., 24, 128, 21) the texts' laws where they are not round 0's.
        stretch: log factor of all answers' lengths.
        residual: (...) change of reference NLL by writing the weights, nats.
        cliff: (...) whether the in-training probe aborted the round.
    """

    law: Floats
    ood: Floats
    twin: Floats | None = None
    exponent: float = 1.0
    tilt: tuple[float, float, float] = (0.0, 0.0, 0.0)
    text_noise: float = 0.0
    text_shift: float = 0.0
    text: Floats | None = None
    stretch: float = 0.0
    residual: Floats | float = 0.0
    cliff: NDArray[np.bool_] | bool = False
    notes: Mapping[str, object] = field(default_factory=dict)


def start(world: World) -> State:
    """Round 0."""
    return State(world.law, world.ood)


def is_cut(world: World, stretch: float) -> NDArray[np.bool_]:
    """(210, 94) which programs run into the token limit at lengths times exp(stretch)."""
    cut: NDArray[np.bool_] = world.log_tokens + stretch >= np.log(CAP)
    cut[:, LOOP] = False  # a loop fills the limit, too, but counts as loop
    return cut


def positions(world: World, state: State, runs: int | None, rng: np.random.Generator) -> Positions:
    """The reference texts as the monitors see them, exactly; (runs, 24, 128) if anything differs by run.

    Only the human's token is tilted, so the other outcomes keep their ratios s = (1 - p') / (1 - p) and
    entropy has a closed form: -p' ln p' - s sum q ln q - (1 - p') ln s.
    """
    law = world.text if state.text is None else state.text
    if state.exponent != 1.0:
        spread = np.concatenate([law[..., :-1], law[..., -1:] / REST], axis=-1)
        weight = spread**state.exponent * np.append(np.ones(OUTCOMES - 1), REST)
        law = weight / weight.sum(axis=-1, keepdims=True)
    at = np.broadcast_to(world.human[..., None], (*law.shape[:-1], 1))
    p = np.take_along_axis(law, at, axis=-1)[..., 0]
    others = law.copy()
    np.put_along_axis(others, at, 0.0, axis=-1)
    q_log_q = (others * np.log(np.maximum(others, 1e-300))).sum(axis=-1)
    top_other, tail = others.max(axis=-1), others[..., -1]
    tilt = -np.asarray(state.tilt)[DOMAINS][:, None]
    if runs is not None and state.text_noise:
        tilt = tilt + state.text_noise * rng.standard_normal((runs, TEXTS, TEXT_TOKENS))
        tilt += state.text_shift * np.clip(rng.standard_normal((runs, 1, 1)), -2.0, 2.0)
    odds = p / np.maximum(1.0 - p, 1e-12) * np.exp(tilt)
    tilted = odds / (1.0 + odds)
    scale = (1.0 - tilted) / np.maximum(1.0 - p, 1e-12)
    entropy = -tilted * np.log(np.maximum(tilted, 1e-300)) - scale * q_log_q
    entropy -= (1.0 - tilted) * np.log(np.maximum(scale, 1e-300))
    return Positions(
        present=np.ones((TEXTS, TEXT_TOKENS), bool),
        nll=-np.log(np.maximum(tilted, 1e-300)),
        entropy=np.maximum(entropy, 0.0),
        tail=tail * scale,
        top=np.maximum(tilted, top_other * scale),
    )


def repeated(baseline: Positions, current: Positions) -> Positions:
    """The baseline with the leading axes of the current positions, as views."""
    shape = current.nll.shape
    arrays = (np.broadcast_to(getattr(baseline, f.name), shape) for f in fields(baseline))
    return Positions(*arrays)


@dataclass(frozen=True)
class Sampled:
    """Samples of one panel, and what guards and comparators read off them.

    Attributes:
        draws: What the monitors see.
        log_tokens: (..., n) mean log length of each problem's answers.
        bad: Counts (...) of answers that were cut, loop, or do not parse.
        distinct2: (...) distinct-2 of the panel's texts (see `_distinct2`).
    """

    draws: Draws
    log_tokens: Floats
    bad: Mapping[str, NDArray[np.int64]]
    distinct2: Floats


def programs(law: Floats, runs: int, n: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """(runs, problems, n) programs drawn from one law (problems, 94), or from one law for each run."""
    if law.ndim == 2:
        edges = np.rint(np.cumsum(law, axis=-1) * 65536).astype(np.int64)
        edges[:, -1] = 65536
        often = np.diff(edges, axis=-1, prepend=0).ravel()
        table = np.repeat(np.tile(np.arange(PROGRAMS, dtype=np.uint8), len(law)), often)
        u = rng.integers(0, 65536, (runs, len(law), n), dtype=np.uint16)
        found: NDArray[np.int32] = table[u + np.arange(len(law), dtype=np.int32)[:, None] * 65536].astype(
            np.int32
        )
        return found
    rows = law.reshape(-1, PROGRAMS)
    edges = np.cumsum(rows, axis=-1)
    edges /= edges[:, -1:]
    flat = (edges + np.arange(len(rows))[:, None]).ravel()
    u = rng.random((len(rows), n)) + np.arange(len(rows))[:, None]
    index = np.searchsorted(flat, u, side="right").reshape(len(rows), n)
    index -= np.arange(len(rows))[:, None] * PROGRAMS
    return np.clip(index, 0, PROGRAMS - 1).astype(np.int32).reshape(*law.shape[:-1], n)


def sample(
    world: World, state: State, panel: str, runs: int, n: int, rng: np.random.Generator, part: object = None
) -> Sampled:
    """Samples of "heldout" or "ood".

    Args:
        part: Which of the laws' runs, where there is a law for each run.
    """
    law = state.law if panel == "heldout" else state.ood
    if law.ndim == 3 and part is not None:
        law = law[part]
    offset = 0 if panel == "heldout" else HELDOUT
    chosen = programs(law, runs, n, rng)
    problems = law.shape[-2]
    place = chosen + (np.arange(problems, dtype=np.int32)[:, None] + offset) * PROGRAMS
    cut = is_cut(world, state.stretch)
    shape = np.where(cut, -1, world.shape)
    length = np.minimum(world.log_tokens + state.stretch, np.log(CAP))
    per_token = np.exp(-length[offset : offset + problems])
    logs = np.log(np.maximum(law, 1e-12)) * per_token
    if law.ndim == 2:
        score = logs.astype(np.float32).ravel()[place - offset * PROGRAMS]
    else:
        score = np.take_along_axis(logs.astype(np.float32), chosen, axis=-1)
    of_shape = shape.ravel()[place]
    draws = Draws(
        passed=(world.right & ~cut).ravel()[place],
        shape=of_shape,
        behaviour=ran(world, state.stretch).ravel()[place],
        accepted=(world.accepted & ~cut).ravel()[place],
        score=score,
    )
    truncated = (cut.ravel()[place]).sum(axis=(-2, -1))
    loops, broken = (chosen == LOOP).sum(axis=(-2, -1)), (of_shape < 0).sum(axis=(-2, -1))
    return Sampled(
        draws=draws,
        log_tokens=length.astype(np.float32).ravel()[place].mean(axis=-1, dtype=np.float64),
        bad={"truncated_share": truncated, "loops_share": loops, "unparsable_share": broken},
        distinct2=_distinct2(chosen, of_shape, state.stretch),
    )


def ran(world: World, stretch: float) -> NDArray[np.int32]:
    """(210, 94) behaviour of the programs that end; -1 for the others."""
    found = np.where(is_cut(world, stretch) | (world.shape < 0), -1, world.behaviour)
    found[:, LOOP] = -1  # a loop runs out of time
    return found


def _distinct2(chosen: NDArray[np.int32], shape: NDArray[np.int32], stretch: float) -> Floats:
    """Different bigrams over all, mean over problems, on a model of texts.

    Half of a program's bigrams are its own (names, comments), .3 its AST class's, .2 its problem's. Longer
    texts repeat themselves: distinct-2 fell as length^-.145 from 50 to 400 tokens (digest, section 2).
    """
    own, kinds = (
        1 + (np.diff(np.sort(x.astype(np.int16), axis=-1)) != 0).sum(axis=-1) for x in (chosen, shape)
    )
    share = (0.5 * own + 0.3 * kinds + 0.2) / chosen.shape[-1]
    return share.mean(axis=-1) * np.exp(-0.145 * stretch)


# True values.


def pass_rate(world: World, state: State) -> Floats:
    """(..., 150) exact pass@1."""
    kept = world.right & ~is_cut(world, state.stretch)[:HELDOUT]
    rate: Floats = (state.law * kept).sum(axis=-1)
    return rate


def richness(world: World, law: Floats, m: int = RICHNESS_M) -> Floats:
    """(..., 150) exact distinct@m of right programs: sum over AST classes of 1 - (1 - q)^m."""
    q = _by_class(world, law * world.right, RIGHT_CLASSES)
    q /= np.maximum(q.sum(axis=-1, keepdims=True), 1e-300)
    return (1.0 - (1.0 - q) ** m).sum(axis=-1)


def _by_class(world: World, law: Floats, classes: int) -> Floats:
    """The law over AST classes 0 .. classes - 1; variants sit behind the classes they belong to."""
    out = np.zeros((*law.shape[:-1], classes))
    for program, kind in enumerate(world.shape):
        if 0 <= kind < classes:
            out[..., kind] += law[..., program]
    return out


def agreement(world: World, state: State) -> Floats:
    """(..., 150) exact chance that two answers that ran are wrong alike."""
    behaviour = ran(world, state.stretch)[:HELDOUT]
    squares = np.zeros(state.law.shape[:-1])
    for kind in range(1, BEHAVIOURS + 2):
        squares = squares + (state.law * (behaviour == kind)).sum(axis=-1) ** 2
    return squares / np.maximum((state.law * (behaviour >= 0)).sum(axis=-1) ** 2, 1e-300)


def judgement(world: World, state: State) -> Floats:
    """() or (runs,) exact area under the curve: pairs in the right order over all pairs, all problems."""
    length = np.minimum(world.log_tokens[:HELDOUT] + state.stretch, np.log(CAP))
    score = np.log(np.maximum(state.law, 1e-12)) * np.exp(-length)
    right = np.broadcast_to(world.right & ~is_cut(world, state.stretch)[:HELDOUT], state.law.shape)
    order = np.argsort(score, axis=-1)
    p, is_right = (np.take_along_axis(x, order, axis=-1) for x in (state.law, right))
    wrong = np.where(is_right, 0.0, p)
    below = np.cumsum(wrong, axis=-1) - wrong
    won = np.where(is_right, p * below, 0.0).sum(axis=-1)
    pairs = np.where(is_right, p, 0.0).sum(axis=-1) * wrong.sum(axis=-1)
    return won.sum(axis=-1) / pairs.sum(axis=-1)


def novelty(world: World, now: State, archive: Sequence[State], n: int = SAMPLES) -> Floats:
    """(..., 150) exact chance that a right answer's class is in none of the archive's rounds of n samples."""
    unseen = _by_class(world, now.law, RIGHT_CLASSES)
    total = unseen.sum(axis=-1)
    for state in archive:
        unseen = unseen * (1.0 - _by_class(world, state.law, RIGHT_CLASSES)) ** n
    return unseen.sum(axis=-1) / np.maximum(total, 1e-12)


def expected_novelty(world: World, base: State, archive: Sequence[State], n: int = SAMPLES) -> Floats:
    """(..., 150) the same if right answers followed the base's law and were as many as the archive's are."""
    right = _by_class(world, base.law, RIGHT_CLASSES)
    law = right / right.sum(axis=-1, keepdims=True)
    unseen = law
    for state in archive:
        rate = _by_class(world, state.law, RIGHT_CLASSES).sum(axis=-1)[..., None]
        unseen = unseen * (1.0 - rate * law) ** n
    return unseen.sum(axis=-1)


def truths(
    world: World, history: Sequence[State], seen: Positions | None = None, only: Sequence[str] | None = None
) -> dict[str, Floats]:
    """True worsening of every monitored quantity after the last round of `history`, (...) each.

    Richness is taken over the problems that samples can tell it of, with 4 right ones of 16 (pass@1 of .3 or
    more at round 0). Breadth is taken over the
    third of the problems that is hard by construction.

    Args:
        history: States of rounds 0 to now.
        seen: The texts' positions now; exact ones without noise if left out.
        only: Which quantities; all if left out.
    """
    rng = np.random.default_rng(0)
    base, now = history[0], history[-1]
    before, rate = pass_rate(world, base), pass_rate(world, now)
    twin = rate if now.twin is None else now.twin
    # fmt: off
    found = {
        "heldout_pass_at_1": lambda: (before - rate).mean(axis=-1),
        "heldout_coverage": lambda: ((1 - rate) ** COVERAGE_K - (1 - before) ** COVERAGE_K).mean(axis=-1),
        "hard_tier_pass_at_1": lambda: (before - rate)[..., world.tier == 2].mean(axis=-1),
        "gate_precision": lambda: _precision(world, base) - _precision(world, now),
        "ood_pass_at_1": lambda: ((base.ood - now.ood) * world.right).sum(axis=-1).mean(axis=-1),
        "richness": lambda: _loss(richness(world, base.law), richness(world, now.law), before >= 0.3),
        "wrong_agreement": lambda: (agreement(world, now) - agreement(world, base)).mean(axis=-1),
        "self_judgement": lambda: judgement(world, base) - judgement(world, now),
        "recycling": lambda: _recycled(world, history),
        "twin_gap": lambda: ((rate - twin) - 0.0).mean(axis=-1),
        "length": lambda: np.asarray(np.abs(now.stretch)),
        "merge_residual": lambda: np.abs(np.asarray(now.residual)),
    }
    # fmt: on
    texts = ("reference_nll", "fork_loss", "lock_leakage", "dead_share")
    wanted = (*found, *texts) if only is None else tuple(only)
    values = {name: np.asarray(found[name]()) for name in wanted if name in found}
    if any(name in texts for name in wanted):
        law_now = positions(world, now, None, rng) if seen is None else seen
        read = suite.on_texts(repeated(positions(world, base, None, rng), law_now), law_now)
        values |= {name: read[name].worsening for name in texts if name in wanted}
    return values


def _loss(before: Floats, now: Floats, over: NDArray[np.bool_]) -> Floats:
    base = before[over].mean()
    return (base - now[..., over].mean(axis=-1)) / base


def _precision(world: World, state: State) -> Floats:
    kept = world.accepted[:HELDOUT] & ~is_cut(world, state.stretch)[:HELDOUT]
    accepted = (state.law * kept).sum(axis=(-2, -1))
    return (state.law * (kept & world.right)).sum(axis=(-2, -1)) / accepted


def _recycled(world: World, history: Sequence[State]) -> Floats:
    archive = history[max(1, len(history) - 4) : -1]
    if not archive:
        return np.zeros(history[-1].law.shape[:-2])
    told = pass_rate(world, history[0]) >= 0.1  # some right ones among 16 samples
    lost = expected_novelty(world, history[0], archive) - novelty(world, history[-1], archive)
    return lost[..., told].mean(axis=-1)
