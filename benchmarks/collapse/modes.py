"""Thirteen collapse modes with a dose and an onset, and six healthy controls, as operators on the tables.

Source of the list: collapse literature (research digest), section 8.2. Every mode declares the quantity whose
true worsening defines its onset: the first round in which it is beyond the monitor's margin. Parameters were
set once from plausible training recipes and not fitted to the rule; the dose alone is searched for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from benchmarks.collapse import world as w
from benchmarks.collapse.world import Floats, State, World
from ssd_loop.config import MARGINS
from ssd_loop.monitors import surprise
from ssd_loop.monitors.cliff import is_cliff
from ssd_loop.monitors.degeneracy import LENGTH_FACTOR
from ssd_loop.monitors.guards import MERGE_RESIDUAL

ROUNDS, ONSET = 10, 3
# Margins of what guards watch: typical length doubled, nats by writing the weights.
LIMITS: dict[str, float] = {
    **{str(name): value for name, value in MARGINS.items()},
    "length": float(np.log(LENGTH_FACTOR)),
    "merge_residual": MERGE_RESIDUAL,
}

Step = Callable[[World, list[State], float, int, int, np.random.Generator], State]


@dataclass(frozen=True)
class Mode:
    """One way to collapse.

    Attributes:
        key: C1 to C13.
        name: What happens.
        expected: Name that the attribution should give.
        quantity: Whose true worsening beyond its margin is the onset.
        step: The state after a round, from (world, states so far, dose, rounds since onset, runs, rng).
        most: Largest dose that means anything.
        unit: What the dose is.
        by_run: Whether the laws differ between runs (finite samples).
    """

    key: str
    name: str
    expected: str
    quantity: str
    step: Step
    most: float
    unit: str
    by_run: bool = False

    @property
    def margin(self) -> float:
        """Worsening of the declared quantity that is tolerated."""
        return LIMITS[self.quantity]


def _law(past: Sequence[State]) -> Floats:
    return past[-1].law


# C1. Samples replace the law: 16 per problem at dose 1, eight times as many at a position of text, which more
# of the samples visit. A tenth of the old law stays, as one epoch at a small rate does not forget it all.
KEPT, AT_POSITION, REPLACED = 0.1, 8, 16


def _tail_loss(
    world: World, past: list[State], dose: float, _k: int, runs: int, rng: np.random.Generator
) -> State:
    n = max(1, round(REPLACED / dose))
    law = np.broadcast_to(_law(past), (runs, *world.law.shape))
    text = np.broadcast_to(world.text if past[-1].text is None else past[-1].text, (runs, *world.text.shape))
    learned = np.empty(text.shape)
    for run in range(runs):  # one run at a time bounds memory
        learned[run] = w.resampled(text[run], AT_POSITION * n, KEPT, rng)
    return replace(past[-1], law=w.resampled(law, n, KEPT, rng), text=learned)


# C2, C3. One temperature for programs and positions of text, in and out of the domain.
COLD, HOT = 0.7, 1.6


def _temperature(past: list[State], exponent: float) -> State:
    last = past[-1]
    return replace(
        last,
        law=w.sharpened(last.law, exponent),
        ood=w.sharpened(last.ood, exponent),
        exponent=last.exponent * exponent,
    )


def _sharpen(
    _world: World, past: list[State], dose: float, _k: int, _runs: int, _rng: np.random.Generator
) -> State:
    return _temperature(past, COLD**-dose)


def _heat(
    _world: World, past: list[State], dose: float, _k: int, _runs: int, _rng: np.random.Generator
) -> State:
    return _temperature(past, HOT**-dose)


def _template(
    world: World, past: list[State], dose: float, _k: int, _runs: int, _rng: np.random.Generator
) -> State:
    """Right answers move to their problem's likeliest AST class, its cosmetic variants alike."""
    law = _law(past)
    best = world.law[:, : w.RIGHT_CLASSES].argmax(axis=-1)
    chosen = (world.shape[None, :] == best[:, None]) & world.right
    mass = (law * world.right).sum(axis=-1, keepdims=True)
    one_class = np.where(world.right, mass * chosen / chosen.sum(axis=-1, keepdims=True), law)
    return replace(past[-1], law=(1.0 - dose) * law + dose * one_class)


def _majority(
    world: World, past: list[State], dose: float, _k: int, _runs: int, _rng: np.random.Generator
) -> State:
    """The filter keeps each problem's likeliest behaviour, right or wrong."""
    law, behaviour = _law(past), world.behaviour[: w.HELDOUT]
    masses = np.stack([(law * (behaviour == kind)).sum(axis=-1) for kind in range(w.BEHAVIOURS + 2)], axis=-1)
    kept = behaviour == masses.argmax(axis=-1)[:, None]
    return replace(past[-1], law=(1.0 - dose) * law + dose * w.conditioned(law, kept))


def _hole(
    _world: World, past: list[State], dose: float, _k: int, _runs: int, _rng: np.random.Generator
) -> State:
    """The filter's visible tests accept a program that returns what they expect."""
    law = _law(past)
    return replace(past[-1], law=(1.0 - dose) * law + dose * (np.arange(w.PROGRAMS) == w.HOLE))


def _narrow(
    world: World, past: list[State], dose: float, _k: int, _runs: int, _rng: np.random.Generator
) -> State:
    """Only problems solved more than .6 of the time are trained on; those below .3 lose what these gain."""
    law = _law(past)
    solved = w.pass_rate(world, past[0])[:, None]
    easy = (1.0 - dose) * law + dose * w.conditioned(law, world.right)
    mass = (law * world.right).sum(axis=-1, keepdims=True)
    left = 1.0 - (1.0 - dose) * mass
    hard = np.where(world.right, (1.0 - dose) * law, law * left / np.maximum(1.0 - mass, 1e-12))
    return replace(past[-1], law=np.where(solved > 0.6, easy, np.where(solved < 0.3, hard, law)))


# C8. Loss of logit per round and dose 1 on text that is not in the loop's domain; the odds of right programs
# out of the domain fall alike.
FORGOTTEN = 0.3


def _forget(
    world: World, past: list[State], dose: float, _k: int, _runs: int, _rng: np.random.Generator
) -> State:
    last, loss = past[-1], FORGOTTEN * dose
    return replace(
        last,
        ood=w.with_odds(last.ood, world.right, np.full(w.OOD, -loss)),
        tilt=(last.tilt[0], last.tilt[1] + loss, last.tilt[2] + loss),
    )


def _recycle(
    world: World, past: list[State], dose: float, k: int, runs: int, rng: np.random.Generator
) -> State:
    """Rounds re-train in turn on two old rounds' 16 samples per problem; dose is their share."""
    notes = past[-1].notes
    if not notes:
        law = np.broadcast_to(world.law, (runs, *world.law.shape))
        notes = {half: w.resampled(law, w.SAMPLES, 0.0, rng) for half in ("0", "1")}
    half = np.asarray(notes[str(k % 2)])
    return replace(past[-1], law=(1.0 - dose) * world.law + dose * half, notes=notes)


def _one_archive(
    world: World, past: list[State], dose: float, _k: int, runs: int, rng: np.random.Generator
) -> State:
    """Every round re-trains on the same two old rounds' samples, 32 per problem."""
    notes = past[-1].notes
    if not notes:
        law = np.broadcast_to(world.law, (runs, *world.law.shape))
        notes = {"all": w.resampled(law, 2 * w.SAMPLES, 0.0, rng)}
    old = np.asarray(notes["all"])
    return replace(past[-1], law=(1.0 - dose) * world.law + dose * old, notes=notes)


LONGER = 1.3  # factor of lengths per round at dose 1: a filter that prefers the longest of a few answers


def _runaway(
    _world: World, past: list[State], dose: float, _k: int, _runs: int, _rng: np.random.Generator
) -> State:
    return replace(past[-1], stretch=past[-1].stretch + dose * np.log(LONGER))


LEAKED = 0.3  # share of the panel's solutions in the training pool


def _leak(
    world: World, past: list[State], dose: float, _k: int, _runs: int, _rng: np.random.Generator
) -> State:
    """Leaked problems move to their solution, the likeliest right program; their renamed twins do not.

    Texts are not modelled, so the n-gram guard, which would find each verbatim row, is left out: this is
    a paraphrased leak that the twin gap alone can see.
    """
    law = _law(past)
    leaked = (np.arange(w.HELDOUT) * LEAKED) % 1.0 < LEAKED
    solution = np.arange(w.PROGRAMS) == world.law[:, : w.RIGHT].argmax(axis=-1)[:, None]
    moved = np.where(leaked[:, None], (1.0 - dose) * law + dose * solution, law)
    return replace(past[-1], law=moved, twin=w.pass_rate(world, past[0]))


# C12. A readout of 512 outcomes on 256 features, weights of sd .02, logits of sd 3; a rank-8 adapter of 1 %
# of its norm moves it towards the law of its data, 30 % of the norm away (a gain of about .02 nats).
WIDE, DEEP, ADAPTER, AWAY, RANK, POINTS = 512, 256, 0.01, 0.3, 8, 500
REPLICAS = 12


def rounded(x: np.ndarray, grid: float) -> np.ndarray:
    """Round to nearest on bf16's grid (8 significant bits), `grid` times coarser; 1 is bf16 itself."""
    _, exponent = np.frexp(x)
    step = grid * np.ldexp(1.0, exponent - 8)
    out: np.ndarray = np.rint(x / step) * step
    return out


@lru_cache(maxsize=64)
def merge_residuals(grid: float) -> Floats:
    """NLL after writing the merged weights less NLL with the adapter aside, nats per token, measured.

    Weights start on the grid, as a stored checkpoint's do: so an adapter below half a step is lost whole.
    """
    return np.array([_residual(grid, np.random.default_rng([12, i])) for i in range(REPLICAS)])


def _residual(grid: float, rng: np.random.Generator) -> float:
    weights = rounded(rng.normal(0.0, 0.02, (WIDE, DEEP)), grid)
    features = rng.standard_normal((POINTS, DEEP)) * (3.0 / (0.02 * np.sqrt(DEEP)))
    shift = rng.standard_normal((WIDE, RANK)) @ rng.standard_normal((RANK, DEEP))
    shift /= np.linalg.norm(shift) / np.linalg.norm(weights)
    data = np.exp(_log_softmax(features @ (weights + AWAY * shift).T))
    merged = weights + ADAPTER * shift
    losses = [
        -(data * _log_softmax(features @ x.T)).sum(axis=1).mean() for x in (rounded(merged, grid), merged)
    ]
    return float(losses[0] - losses[1])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    out: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return out


def _merge(
    _world: World, past: list[State], dose: float, _k: int, runs: int, rng: np.random.Generator
) -> State:
    return replace(past[-1], residual=rng.choice(merge_residuals(dose), runs))


PROBES = 8  # of reference NLL within a round's training (every 25 of 200 steps; digest, 5.2 step 8)


def _cliff(
    world: World, past: list[State], dose: float, k: int, runs: int, rng: np.random.Generator
) -> State:
    """Once, at onset: from one step of the round on, logits of human tokens and of right answers fall."""
    last = past[-1]
    if k > 0:
        return replace(last, cliff=False)
    return replace(
        last,
        law=w.with_odds(last.law, world.right, np.full(w.HELDOUT, -dose)),
        ood=w.with_odds(last.ood, world.right, np.full(w.OOD, -dose)),
        tilt=(dose, dose, dose),
        cliff=probe_aborts(world, last, dose, runs, rng) <= PROBES,
    )


def probe_aborts(
    world: World, before: State, dose: float, runs: int, rng: np.random.Generator
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """(runs,) the probe at which training is aborted, PROBES + 1 if at none.

    The rule is the engine's `monitors.cliff.is_cliff`, here on the texts' whole length. The fall begins at a
    random probe and is linear to the round's end; steps add noise.
    """
    start = surprise.measure(w.positions(world, before, None, rng))
    begins = rng.integers(0, PROBES - 1, runs)
    abort = np.full(runs, PROBES + 1)
    for probe in range(PROBES, 0, -1):
        share = np.clip((probe - begins) / (PROBES - begins), 0.0, 1.0)
        for begin in np.unique(begins):
            mine = np.flatnonzero(begins == begin)
            loss = float(dose * share[mine[0]])
            now = replace(before, tilt=(loss, loss, loss), text_noise=0.02)
            seen = surprise.measure(w.positions(world, now, len(mine), rng))
            rise = seen.num / seen.den - start.num / start.den
            found = [is_cliff(one, MARGINS["reference_nll"]) for one in rise]
            abort[mine[found]] = probe
    return abort


MODES = (
    Mode(
        "C1", "tail loss by replacement", "sharpening", "richness", _tail_loss, 16.0, "16 / n samples", True
    ),
    Mode("C2", "sharpening", "sharpening", "fork_loss", _sharpen, 4.0, "1 = temperature .7"),
    Mode("C3", "noise amplification", "noise", "lock_leakage", _heat, 4.0, "1 = temperature 1.6"),
    Mode("C4", "template", "template", "richness", _template, 1.0, "share moved per round"),
    Mode(
        "C5", "self-reinforcing error", "self-reinforcing error", "wrong_agreement", _majority, 1.0, "share"
    ),
    Mode("C6", "rubber-stamp filter", "self-reinforcing error", "gate_precision", _hole, 1.0, "share"),
    Mode("C7", "easy-task narrowing", "narrowing", "hard_tier_pass_at_1", _narrow, 1.0, "share"),
    Mode("C8", "forgetting", "forgetting", "reference_nll", _forget, 20.0, "1 = .3 logits per round"),
    Mode("C9", "recycling", "recycling", "recycling", _recycle, 1.0, "share re-trained on", True),
    Mode("C10", "length runaway", "runaway", "length", _runaway, 10.0, "1 = x 1.3 per round"),
    Mode("C11", "leak", "leak", "twin_gap", _leak, 1.0, "share"),
    Mode("C12", "merge rounding", "merge", "merge_residual", _merge, 256.0, "1 = bf16, 16 = fp8 e4m3"),
    Mode("C13", "in-round cliff", "cliff", "reference_nll", _cliff, 20.0, "logits lost"),
)
# Not one of the thirteen: recycling with a pool wide enough that variety within a round stays.
EXTRA = (
    Mode(
        "C9b",
        "recycling of one archive",
        "recycling",
        "recycling",
        _one_archive,
        1.0,
        "share re-trained on",
        True,
    ),
)
GRID = (0.25, 0.5, 1.0, 2.0, 4.0)  # doses around the declared one


def path(
    world: World, mode: Mode, dose: float, runs: int, rng: np.random.Generator, rounds: int = ROUNDS
) -> Iterator[State]:
    """The states of rounds 1, 2, ...; healthy before the onset of the provocation."""
    past = [w.start(world)]
    for r in range(1, rounds + 1):
        if r < ONSET:
            state = past[0]
        else:
            state = mode.step(world, past, dose, r - ONSET, runs, rng)
        past.append(state)
        yield state


def true_worsening(world: World, mode: Mode, dose: float, rounds: int, runs: int = 30) -> Floats:
    """(rounds,) of the declared quantity; the mean over runs where laws differ by run."""
    rng = np.random.default_rng([7, *mode.key.encode()])
    history, found = [w.start(world)], []
    for state in path(world, mode, dose, runs, rng, rounds):
        history.append(state)
        found.append(float(w.truths(world, history, only=[mode.quantity])[mode.quantity].mean()))
    return np.array(found)


def declared_dose(world: World, mode: Mode, steps: int = 30) -> tuple[float, bool]:
    """The dose at which the true worsening is twice the margin two rounds after the provocation's onset.

    Returns:
        The dose by bisection, and whether it exists; if not, the largest one.
    """
    last = ONSET + 2

    def beyond(dose: float) -> bool:
        return bool(true_worsening(world, mode, dose, last)[-1] >= 2.0 * mode.margin)

    if not beyond(mode.most):
        return mode.most, False
    low, high = 0.0, mode.most
    for _ in range(12 if mode.by_run or mode.key == "C12" else steps):
        middle = (low + high) / 2.0 if low > 0.0 else high / 2.0
        low, high = (low, middle) if beyond(middle) else (middle, high)
    return high, True


# Healthy controls.

# sd of logits between trainings (H1); the shared part is small enough that true pass@1 stays in its margin
SEED_PROGRAM, SEED_PROBLEM, SEED_ALL = 0.10, 0.10, 0.01
SEED_POSITION, SEED_TEXT = 0.05, 0.01
HUMAN_GAIN, HUMAN_MOST = 0.15, 0.6  # gain of right answers' logit per round, and at most (H2)
HUMAN_TEXT, HUMAN_TEXT_MOST = 0.01, 0.05
LEGITIMATE = 1.4  # factor of lengths (H4)
BATCH_NOISE = 0.01  # sd of logits between engine batch sizes (H5): bf16 sums in another order
INSIDE = 0.9  # share of a margin that benign sharpening takes up (H3)


def seeded(world: World, state: State, runs: int, rng: np.random.Generator) -> State:
    """Another training seed: every run's own small change of the law, bounded to two sd where shared."""
    noise = SEED_PROGRAM * rng.standard_normal((runs, *world.law.shape), dtype=np.float32)
    shared = SEED_ALL * np.clip(rng.standard_normal((runs, 1)), -2.0, 2.0)
    own = SEED_PROBLEM * rng.standard_normal((runs, w.HELDOUT)) + shared
    law = state.law * np.exp(noise)
    ood = np.broadcast_to(state.ood, (runs, *world.ood.shape))
    own_ood = SEED_PROBLEM * rng.standard_normal((runs, w.OOD)) + shared
    return replace(
        state,
        law=w.with_odds(law, world.right, own),
        ood=w.with_odds(ood, world.right, own_ood),
        text_noise=SEED_POSITION,
        text_shift=SEED_TEXT,
    )


def seed_noise(world: World, runs: int = 400) -> dict[str, float]:
    """Exact standard deviation of every quantity between training seeds (H1)."""
    rng = np.random.default_rng([7, 100])
    base = w.start(world)
    state = seeded(world, base, runs, rng)
    seen = w.positions(world, state, runs, rng)
    names = [name for name in MARGINS if name not in ("twin_gap", "recycling")]
    found = w.truths(world, [base, state], seen, only=names)
    return {name: float(values.std(ddof=1)) for name, values in found.items()} | {"twin_gap": 0.0}


def benign_exponent(world: World) -> tuple[float, str]:
    """The exponent at which the first monitored quantity has taken up .9 of its margin, and which it is."""

    def worst(exponent: float) -> tuple[float, str]:
        state = _temperature([w.start(world)], exponent)
        found = w.truths(world, [w.start(world), *[state] * 4])
        return max((float(value) / LIMITS[name], name) for name, value in found.items())

    low, high = 1.0, 2.0
    for _ in range(30):
        middle = (low + high) / 2.0
        low, high = (middle, high) if worst(middle)[0] < INSIDE else (low, middle)
    return low, worst(low)[1]


CONTROLS = {
    "H0": "no training, only resampling",
    "H1": "other training seeds (A/A)",
    "H2": "oracle filter, accumulated, 20 % human data",
    "H3": "benign sharpening that plateaus at .9 of a margin",
    "H4": "answers 40 % longer",
    "H5": "another engine batch size",
}


def control_path(
    world: World, key: str, runs: int, rng: np.random.Generator, rounds: int = ROUNDS
) -> Iterator[State]:
    """The states of rounds 1, 2, ... of a healthy control.

    H4's other half, prompts in another order, is no change at all here: samples are paired by problem.
    """
    base = w.start(world)
    exponent = benign(world) if key == "H3" else 1.0
    for r in range(1, rounds + 1):
        if key == "H1":
            yield seeded(world, base, runs, rng)
        elif key == "H2":
            gain, text = min(HUMAN_GAIN * r, HUMAN_MOST), min(HUMAN_TEXT * r, HUMAN_TEXT_MOST)
            law = w.with_odds(base.law, world.right, np.full(w.HELDOUT, gain))
            ood = w.with_odds(base.ood, world.right, np.full(w.OOD, gain / 2.0))
            yield replace(base, law=law, ood=ood, tilt=(-text, -text, -text))
        elif key == "H3":
            yield _temperature([base], 1.0 + (exponent - 1.0) * (1.0 - 0.5**r))
        elif key == "H4":
            yield replace(base, stretch=float(np.log(LEGITIMATE)))
        elif key == "H5":
            law = base.law * np.exp(BATCH_NOISE * rng.standard_normal(base.law.shape))
            law /= law.sum(axis=-1, keepdims=True)
            yield replace(base, law=law, text_noise=BATCH_NOISE)
        else:
            yield base


_BENIGN: dict[int, float] = {}


def benign(world: World) -> float:
    """`benign_exponent`, found once for a world."""
    if id(world) not in _BENIGN:
        _BENIGN[id(world)] = benign_exponent(world)[0]
    return _BENIGN[id(world)]
