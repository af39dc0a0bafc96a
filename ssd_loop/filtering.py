"""Stage `filter`: which samples are trained on. The first rule that matches is the reason."""

from __future__ import annotations

import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ssd_loop.config import FilterConfig, FilterName
from ssd_loop.errors import StageFailedError
from ssd_loop.programs import canonical_hash, extract_code, is_stub, parse
from ssd_loop.records import Dropped, Sample, Writer, quantiles
from ssd_loop.store import Metrics

STAGE_VERSION = 1
KEPT, DROPPED = "kept.parquet", "dropped.parquet"

Key = tuple[str, int]


def key(sample: Sample) -> Key:
    """What names a sample within its stage."""
    return sample.prompt_id, sample.sample_index


def expand(filters: Sequence[FilterName]) -> list[FilterName]:
    """The filters with `raw` written out: the paper drops empty answers and stubs (section 3.1)."""
    names: list[FilterName] = []
    for name in filters:
        names += ["empty", "stub"] if name == "raw" else [name]
    return list(dict.fromkeys(names))


def judge(
    samples: Iterable[Sample],
    config: FilterConfig,
    *,
    runs: Collection[Key] | None = None,
    behaviours: Mapping[Key, str | None] | None = None,
    passed: Collection[Key] | None = None,
) -> list[FilterName | None]:
    """For each sample the first filter that drops it, or None to keep it.

    Samples are gone over once, and a few numbers are kept of each.

    Args:
        samples: All samples of the round; the shares and quantiles are taken over them.
        config: Which filters, and their shares.
        runs: Keys of the samples whose program ran; only `does_not_run` needs it.
        behaviours: What each sample did on the probe inputs, None if it did not run; for `minority`.
        passed: Keys of the samples that passed their prompt's tests; for `fails_tests`.
    """
    names = expand(config.filters)
    rules = [_rule(name, runs, behaviours, passed) for name in names]
    first, lengths, surprise = array("q"), array("q"), array("d")
    for sample in samples:
        shown = _Shown(sample)
        found = len(names)
        for place, rule in enumerate(rules):
            # Every sample is shown to `duplicate`, which remembers what it saw.
            if rule is not None and (found == len(names) or names[place] == "duplicate") and rule(shown):
                found = min(found, place)
        first.append(found)
        lengths.append(len(sample.text))
        surprise.append(sample.logprob / max(len(sample.token_ids), 1))
    for place, name in enumerate(names):
        if (hit := _among_all(name, np.array(lengths), np.array(surprise), config)) is not None:
            for index in np.flatnonzero(hit):
                first[index] = min(first[index], place)
    return [names[place] if place < len(names) else None for place in first]


class _Shown:
    """A sample as the rules look at it."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample

    @cached_property
    def code(self) -> str | None:
        return extract_code(self.sample.text)

    @property
    def text(self) -> str:
        return self.sample.text if self.code is None else self.code


Rule = Callable[[_Shown], bool]


def _rule(
    name: FilterName,
    runs: Collection[Key] | None,
    behaviours: Mapping[Key, str | None] | None,
    passed: Collection[Key] | None,
) -> Rule | None:
    """The rule of a filter that looks at one sample at a time; None for one that looks at all at once."""
    if name == "empty":
        return lambda shown: not shown.sample.text.strip()
    if name == "stub":
        return lambda shown: is_stub(shown.text)
    if name == "truncated":
        return lambda shown: shown.sample.finish_reason == "length"
    if name == "unparsable":
        return lambda shown: shown.code is None or parse(shown.text) is None
    if name == "does_not_run":
        if runs is None:
            raise ValueError("does_not_run needs the samples that ran")
        return lambda shown: key(shown.sample) not in runs
    if name == "minority":
        if behaviours is None:
            raise ValueError("minority needs what the samples did")
        usual = _usual(behaviours)
        return lambda shown: key(shown.sample) not in usual
    if name == "fails_tests":
        if passed is None:
            raise ValueError("fails_tests needs the samples that passed")
        return lambda shown: key(shown.sample) not in passed
    return _repeated() if name == "duplicate" else None


def _among_all(name: FilterName, lengths: Any, surprise: Any, config: FilterConfig) -> Any:
    """Which samples a filter drops that looks at all of them at once; None for any other filter.

    Args:
        name: The filter.
        lengths: Characters of each sample.
        surprise: Mean log-prob of each per token, nats.
        config: Shares and quantiles.
    """
    if name == "too_short":
        return _extreme(lengths, config.too_short_share)
    if name == "too_long":
        return _extreme(-lengths, config.too_long_share)
    if name == "surprise" and len(surprise):
        low, high = np.quantile(surprise, [config.surprise_low, config.surprise_high])
        return ~((low <= surprise) & (surprise <= high))
    return None


def _extreme(sizes: Any, share: float) -> Any:
    """Whether each is in the smallest share; ties are broken by position, so the count is exact."""
    smallest = np.argsort(sizes, kind="stable")[: int(share * len(sizes) + 1e-9)]
    found = np.zeros(len(sizes), dtype=bool)
    found[smallest] = True
    return found


def _usual(behaviours: Mapping[Key, str | None]) -> set[Key]:
    """The samples that behave as most of their prompt's samples do; of equally common behaviours, all.

    Answers that did not run agree with nothing.
    """
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for (prompt, _), behaviour in behaviours.items():
        if behaviour is not None:
            seen[prompt][behaviour] += 1
    return {
        (prompt, index)
        for (prompt, index), behaviour in behaviours.items()
        if behaviour is not None and seen[prompt][behaviour] == max(seen[prompt].values())
    }


def _repeated() -> Rule:
    """Whether an earlier sample of the same prompt has the same program, names and layout apart."""
    seen: set[bytes] = set()  # hashes: a million programs are larger than what else is kept of them

    def rule(shown: _Shown) -> bool:
        shape = (canonical_hash(shown.code) if shown.code is not None else None) or shown.sample.text
        what = sha256(json.dumps([shown.sample.prompt_id, shape]).encode()).digest()
        is_known = what in seen
        seen.add(what)
        return is_known

    return rule


def run(
    config: FilterConfig,
    samples: Iterable[Sample],
    *,
    out: Path,
    runs: Collection[Key] | None = None,
    behaviours: Mapping[Key, str | None] | None = None,
    passed: Collection[Key] | None = None,
) -> Metrics:
    """Write ``kept.parquet`` and ``dropped.parquet``; `samples` are gone over twice, one after the other.

    The metrics have quantiles over the kept samples of their mean negative log-likelihood, nats per token,
    under the law that drew them.

    Raises:
        StageFailedError: nothing is left to train on.
    """
    reasons = judge(samples, config, runs=runs, behaviours=behaviours, passed=passed)
    counts = Counter(reasons)
    kept = counts.pop(None, 0)
    if not kept:
        common, count = counts.most_common(1)[0]
        raise StageFailedError(
            f"no sample is left after filtering ({count} of {len(reasons)} dropped as {common}); "
            "loosen filter.filters or lower sample.temperature"
        )
    tokens = 0
    # How surprising the training set is to the model that wrote it: it narrows before pass rates do.
    nll = array("d")
    with Writer(out / KEPT, Sample) as keep, Writer(out / DROPPED, Dropped) as drop:
        for sample, why in zip(samples, reasons, strict=True):
            if why is None:
                keep.add(sample)
                tokens += len(sample.token_ids)
                nll.append(-sample.logprob / max(len(sample.token_ids), 1))
            else:
                drop.add(Dropped(*key(sample), why))
    return {
        "kept": kept,
        "kept_share": kept / len(reasons),
        "kept_tokens": tokens,
        **quantiles("nll", nll),
        **{f"dropped_{name}": counts[name] for name in expand(config.filters)},
    }
