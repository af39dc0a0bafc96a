"""What every attempt of every stage cost. Reported, never decided on.

``costs.jsonl`` holds increments. An attempt adds a row when it starts, one every minute while it works, and a
last one that says whether it finished; each row counts what was done since the row before. So a killed
attempt has left all but its last minute, and one without a last row was killed, or is still at work.

Tokens are counted where the work is done, so that a killed attempt's are known and a resumed one's are not
counted twice. Three kinds of them are told apart: those drawn in stage `sample` were sampled; those drawn in
any other stage, whatever its name, were drawn to evaluate; those trained on were trained, in `train` and in
the extra trainings `seed_NN`, whose own measurement counts as evaluated. Prompt tokens stand apart.
"""

from __future__ import annotations

import math
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from ssd_loop.durable import append_jsonl, read_jsonl

COSTS = "costs.jsonl"
DEVICES = 1  # one CPU or one GPU, held for as long as a stage runs
EVERY_S = 60.0  # between two rows of an attempt: what a kill can hide
SAMPLING = "sample"  # the stage whose drawn tokens are sampled ones
# The names under which configs of mixtures give the number of experts, and how many of them see a token.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "experts_per_token", "moe_k", "moe_topk")
_EXPERT = re.compile(r"(^|\.)experts\.")  # not shared_experts, which see every token


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What operations are counted from.

    Attributes:
        matmul: Parameters that a token is multiplied with, output layer included: `matmul_parameters`.
        adapter: Parameters of one adapter.
    """

    matmul: int
    adapter: int


@dataclass(frozen=True, slots=True)
class Work:
    """What was done.

    Attributes:
        seconds: Wall time.
        busy_seconds: That part of it in which the device generated, scored or trained.
        prompt_tokens: Prompt tokens of the completions that were drawn, once for each completion.
        drawn_tokens: Tokens of these completions.
        scored_tokens: Tokens of texts that were scored.
        trained_prompt_tokens: Prompt tokens that were trained through, without a loss of their own.
        trained_tokens: Completion tokens that were trained on.
    """

    seconds: float = 0.0
    busy_seconds: float = 0.0
    prompt_tokens: int = 0
    drawn_tokens: int = 0
    scored_tokens: int = 0
    trained_prompt_tokens: int = 0
    trained_tokens: int = 0

    def __sub__(self, earlier: Work) -> Work:
        return Work(**{f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(Work)})

    def __add__(self, other: Work) -> Work:
        return Work(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)})


def flops(work: Work, size: ModelSize) -> int:
    """Floating-point operations of some work, by formula.

    A forward pass takes 2 N per token, prompt tokens included; LoRA training 4 N + 6 n per token: forward
    2 N, backward through the activations 2 N, no gradients of the N frozen weights, and for the adapter's own
    n parameters all three. Source: Kaplan et al. 2020 (arXiv 2001.08361), section 2.1, whose N leaves out the
    output layer; here N has it. Not in it: attention's part that grows with the square of the length,
    activations that are computed twice to save memory, probes inside training and the merge gate.
    """
    forward = work.prompt_tokens + work.drawn_tokens + work.scored_tokens
    trained = work.trained_prompt_tokens + work.trained_tokens
    return 2 * size.matmul * forward + (4 * size.matmul + 6 * size.adapter) * trained


def matmul_parameters(
    shapes: Mapping[str, Sequence[int]], *, embedding: str, head: str, active_share: float = 1.0
) -> int:
    """Parameters that take part in the matrix products of one token.

    Args:
        shapes: Shape of every stored tensor, by name.
        embedding: Name of the input embedding: a table to look up, which counts only where it is the output
            layer as well.
        head: Name of the output layer's own tensor, which tied models do not store.
        active_share: Share of a mixture's experts that see a token.
    """
    total = 0.0
    for name, shape in shapes.items():
        is_table = name == embedding and head in shapes
        if len(shape) < 2 or is_table or name.endswith("bias"):
            continue
        total += math.prod(shape) * (active_share if _EXPERT.search(name) else 1.0)
    return round(total)


def active_share(model_config: Any) -> float:
    """Share of a model's experts that see a token; 1 for a dense model, or where its config does not say."""
    experts = next((n for name in EXPERTS if (n := getattr(model_config, name, None))), None)
    active = next((n for name in EXPERTS_PER_TOKEN if (n := getattr(model_config, name, None))), None)
    return active / experts if experts and active else 1.0


class Meter:
    """Counts what a run does, in whatever thread that is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done = Work()
        self._working_since: float | None = None
        self.attempt: Attempt | None = None  # the one that is at work

    def add(self, work: Work) -> None:
        """Count some work."""
        with self._lock:
            self._done += work

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the time that this block takes as work of the device."""
        began = time.monotonic()
        with self._lock:
            self._working_since = began
        try:
            yield
        finally:
            with self._lock:
                self._done += Work(busy_seconds=time.monotonic() - began)
                self._working_since = None

    def read(self) -> Work:
        """Everything so far, the work under way included; `seconds` is a clock with no meaning of its own."""
        with self._lock:
            now = time.monotonic()
            under_way = 0.0 if self._working_since is None else now - self._working_since
            return self._done + Work(seconds=now, busy_seconds=under_way)


class Attempt:
    """One attempt of one stage, and the rows that it leaves."""

    def __init__(
        self, path: Path, round_index: int, stage: str, meter: Meter, size: ModelSize | None
    ) -> None:
        self._path, self._meter, self._size = path, meter, size
        self._about = {"attempt": uuid.uuid4().hex[:12], "round": round_index, "stage": stage}
        self._lock = threading.Lock()
        self._counted: Work | None = meter.read()  # up to where there are rows; None while another is at work

    def book(self, **last: bool) -> None:
        """Add a row with what was done since the last one; nothing while another attempt is at work."""
        with self._lock:
            if self._counted is None:
                return
            now = self._meter.read()
            append_jsonl(self._path, self._about | _row(now - self._counted, self._size) | last)
            self._counted = now  # after the row: what a full disk refused comes with the next

    def pause(self) -> None:
        """Leave what follows to another attempt, which this one needs."""
        with suppress(OSError):
            self.book()
        with self._lock:
            self._counted = None

    def resume(self) -> None:
        """Go on after that."""
        with self._lock:
            self._counted = self._meter.read()

    def keep_booking(self, stopped: threading.Event) -> None:
        """Add a row every minute until told to stop; a disk that is full now costs no more than time."""
        while not stopped.wait(EVERY_S):
            with suppress(OSError):
                self.book()


def _row(work: Work, size: ModelSize | None) -> dict[str, Any]:
    counts = asdict(work) | {"flops": flops(work, size) if size else 0}
    times = {name: round(counts.pop(name), 3) for name in ("seconds", "busy_seconds")}
    hours = {"device_hours": round(DEVICES * work.seconds / 3600, 6)}
    return times | hours | {name: count for name, count in counts.items() if count}


@contextmanager
def timed(
    run_folder: Path,
    round_index: int,
    stage: str,
    meter: Meter | None = None,
    size: ModelSize | None = None,
) -> Iterator[None]:
    """Log one attempt, also one that fails or is killed.

    An attempt inside another (weights that are rebuilt when a stage asks for them) pauses that one, so that
    nothing is counted twice.

    Args:
        run_folder: Where ``costs.jsonl`` is.
        round_index: The round.
        stage: The stage.
        meter: Counts what the run does; unset: nothing but time is counted.
        size: What operations are counted from; unset: they are not.

    Raises:
        OSError: the log cannot be written when the attempt starts; later it costs rows, never the work.
    """
    meter = meter or Meter()
    outer = meter.attempt
    if outer:
        outer.pause()
    try:
        attempt = meter.attempt = Attempt(run_folder / COSTS, round_index, stage, meter, size)
        attempt.book()
        with _booked(attempt):
            yield
    finally:
        meter.attempt = outer
        if outer:
            outer.resume()


@contextmanager
def _booked(attempt: Attempt) -> Iterator[None]:
    """Rows of an attempt while the block runs, and the last one when it ends, however it ends."""
    stopped, finished = threading.Event(), False
    booking = threading.Thread(target=attempt.keep_booking, args=(stopped,), daemon=True, name="costs")
    try:
        booking.start()
        yield
        finished = True
    finally:
        stopped.set()
        if booking.is_alive():
            booking.join()
        with suppress(OSError):
            attempt.book(finished=finished)


@dataclass(frozen=True, slots=True)
class Cost:
    """What some attempts cost together.

    Attributes:
        seconds: Wall time.
        attempts: How many there were.
        failed: How many of them ended with an error or an interrupt.
        killed: How many of them ended without a last row, or are still at work.
        lost_seconds: Wall time of those that failed or were killed; part of it may have been used again.
        busy_seconds: Time in which the device generated, scored or trained.
        metered_seconds: Wall time of the rows that know that; rows of older versions do not.
        flops: Floating-point operations, by `flops`.
        sampled_tokens: Completion tokens drawn to train on; `sampled_prompt_tokens` their prompts'.
        trained_tokens: Completion tokens trained on; `trained_prompt_tokens` their prompts'.
        evaluated_tokens: Completion tokens drawn to measure; `evaluated_prompt_tokens` their prompts'.
        scored_tokens: Tokens of given texts that were scored.
    """

    seconds: float = 0.0
    attempts: int = 0
    failed: int = 0
    killed: int = 0
    lost_seconds: float = 0.0
    busy_seconds: float = 0.0
    metered_seconds: float = 0.0
    flops: int = 0
    sampled_tokens: int = 0
    sampled_prompt_tokens: int = 0
    trained_tokens: int = 0
    trained_prompt_tokens: int = 0
    evaluated_tokens: int = 0
    evaluated_prompt_tokens: int = 0
    scored_tokens: int = 0

    @property
    def device_hours(self) -> float:
        """Hours of all devices that were held."""
        return DEVICES * self.seconds / 3600


Spent = Mapping[tuple[int, str], Cost]  # by round and stage


def total(costs: Iterable[Cost]) -> Cost:
    """The costs added up."""
    several = list(costs)
    return Cost(**{field.name: sum(getattr(cost, field.name) for cost in several) for field in fields(Cost)})


def of_work(stage: str, work: Work, size: ModelSize | None) -> Cost:
    """One finished attempt of a stage that did this work."""
    drawn = "sampled" if stage == SAMPLING else "evaluated"
    counts = {f"{drawn}_tokens": work.drawn_tokens, f"{drawn}_prompt_tokens": work.prompt_tokens}
    return Cost(
        seconds=work.seconds,
        attempts=1,
        busy_seconds=work.busy_seconds,
        metered_seconds=work.seconds,
        flops=flops(work, size) if size else 0,
        trained_tokens=work.trained_tokens,
        trained_prompt_tokens=work.trained_prompt_tokens,
        scored_tokens=work.scored_tokens,
        **counts,
    )


def read(run_folder: Path) -> dict[tuple[int, str], Cost]:
    """Cost of each (round, stage), over all its attempts."""
    return summed(read_jsonl(run_folder / COSTS))


def summed(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[int, str], Cost]:
    """Cost of each (round, stage) from the rows of a log; what is no row of ours is left out."""
    attempts: dict[Any, list[Mapping[str, Any]]] = {}
    for number, row in enumerate(rows):
        if not _is_ours(row):
            continue
        attempts.setdefault(row.get("attempt", number), []).append(row)
    found: dict[tuple[int, str], Cost] = {}
    for booked in attempts.values():
        key = booked[0]["round"], booked[0]["stage"]
        found[key] = total([found.get(key, Cost()), _attempted(key[1], booked)])
    return found


def _is_ours(row: Mapping[str, Any]) -> bool:
    counts = {field.name for field in fields(Work)} | {"flops", "tokens"}
    wanted = {"round", "stage"} if "attempt" in row else {"round", "stage", "seconds", "tokens"}
    return (
        wanted <= row.keys()
        and isinstance(row["stage"], str)
        and isinstance(row["round"], int)
        and isinstance(row.get("attempt", ""), str | int)
        and all(_is_count(row[name]) for name in counts & row.keys())
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _attempted(stage: str, rows: Sequence[Mapping[str, Any]]) -> Cost:
    """One attempt from its rows."""
    names = [field.name for field in fields(Work)]
    if "attempt" in rows[0]:
        work = Work(**{name: sum(row.get(name, 0) for row in rows) for name in names})
        metered = work.seconds
    else:  # a row of a version that counted nothing but tokens, all of one kind
        kind = "trained_tokens" if stage == "train" else "drawn_tokens"
        work = Work(**{"seconds": rows[0]["seconds"], kind: rows[0]["tokens"]})
        metered = 0.0
    ends = [row["finished"] for row in rows if "finished" in row]
    return replace(
        of_work(stage, work, None),
        metered_seconds=metered,
        flops=sum(row.get("flops", 0) for row in rows),
        failed=int(ends == [False]),
        killed=int(not ends),
        lost_seconds=0.0 if ends == [True] else work.seconds,
    )


def ledger(
    spent: Spent, *, price_per_device_hour: float = 0.0, gain_points: float | None = None
) -> dict[str, Any]:
    """What a run cost, as plain data: by round and stage, by stage, and in all.

    Every entry has the counts of `Cost` and `device_hours`, `money` (None where the price is unknown) and
    `busy_share` (None where no row knows it). `ratio_to_one_round` is what everything cost over one inference
    pass plus one fine-tune: the stages sample and train of the first round that finished both, without
    attempts that were lost. `money_per_point` and `device_hours_per_point` are None without a gain.

    Args:
        spent: What `read` returns, or a prediction of it.
        price_per_device_hour: In any currency; 0 is unknown.
        gain_points: What the run gained, percentage points.
    """
    price = price_per_device_hour or None
    rounds = sorted({n for n, _ in spent})
    stages = dict.fromkeys(stage for _, stage in spent)
    everything = _entry(total(spent.values()), price)
    alone = next((hours for n in rounds if (hours := _one_pass(spent, n))), None)
    gain = gain_points if gain_points and gain_points > 0 else None
    return {
        "price_per_device_hour": price,
        "rounds": [
            {
                "round": n,
                **_entry(total(cost for (r, _), cost in spent.items() if r == n), price),
                "stages": {stage: _entry(cost, price) for (r, stage), cost in spent.items() if r == n},
            }
            for n in rounds
        ],
        "stages": {
            stage: _entry(total(cost for (_, s), cost in spent.items() if s == stage), price)
            for stage in stages
        },
        "total": everything,
        "one_round_device_hours": alone,
        "ratio_to_one_round": everything["device_hours"] / alone if alone else None,
        "gain_points": gain_points,
        "device_hours_per_point": everything["device_hours"] / gain if gain else None,
        "money_per_point": everything["money"] / gain if gain and price else None,
    }


def _entry(cost: Cost, price: float | None) -> dict[str, Any]:
    return {
        **asdict(cost),
        "device_hours": cost.device_hours,
        "money": cost.device_hours * price if price else None,
        "busy_share": cost.busy_seconds / cost.metered_seconds if cost.metered_seconds else None,
    }


def _one_pass(spent: Spent, n: int) -> float | None:
    """Device-hours of one inference pass and one fine-tune, lost attempts aside; None without either."""
    costs = [spent.get((n, stage), Cost()) for stage in (SAMPLING, "train")]
    hours = [replace(cost, seconds=cost.seconds - cost.lost_seconds).device_hours for cost in costs]
    return sum(hours) if all(hours) else None


def table(found: Mapping[str, Any], title: str) -> Table:
    """A ledger by stage and in all, as a table."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("stage")
    everything = told(found["total"])
    for name in everything:
        shown.add_column(name, justify="right")
    for stage, entry in found["stages"].items():
        shown.add_row(stage, *told(entry).values())
    shown.add_section()
    shown.add_row("total", *everything.values())
    return shown


def told(entry: Mapping[str, Any]) -> dict[str, str]:
    """An entry of a ledger in words, by heading."""
    kinds = ("sampled", "trained", "evaluated")
    own = sum(entry[f"{kind}_tokens"] for kind in kinds) + entry["scored_tokens"]
    prompts = sum(entry[f"{kind}_prompt_tokens"] for kind in kinds)
    return {
        "tokens": f"{own:,}" if own else "-",
        "prompt tokens": f"{prompts:,}" if prompts else "-",
        "seconds": f"{entry['seconds']:,.0f}",
        "device-hours": f"{entry['device_hours']:.3f}",
        "busy": "-" if entry["busy_share"] is None else f"{entry['busy_share']:.0%}",
        "FLOPs": f"{entry['flops']:.2e}" if entry["flops"] else "-",
        "money": "unknown" if entry["money"] is None else f"{entry['money']:,.2f}",
    }
