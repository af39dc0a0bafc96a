"""Stage `filter`: which samples are trained on. The first rule that matches is the reason."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from ssd_loop.config import FilterConfig, FilterName
from ssd_loop.errors import StageFailedError
from ssd_loop.programs import canonical_hash, extract_code, is_stub, parse
from ssd_loop.records import Dropped, Sample, quantiles, write_rows
from ssd_loop.store import Metrics

STAGE_VERSION = 1
KEPT, DROPPED = "kept.parquet", "dropped.parquet"

Rule = Callable[[int], bool]
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
    samples: Sequence[Sample],
    config: FilterConfig,
    *,
    runs: Collection[Key] | None = None,
    behaviours: Mapping[Key, str | None] | None = None,
    passed: Collection[Key] | None = None,
) -> list[FilterName | None]:
    """For each sample the first filter that drops it, or None to keep it.

    Args:
        samples: All samples of the round; the shares and quantiles are taken over them.
        config: Which filters, and their shares.
        runs: Keys of the samples whose program ran; only `does_not_run` needs it.
        behaviours: What each sample did on the probe inputs, None if it did not run; for `minority`.
        passed: Keys of the samples that passed their prompt's tests; for `fails_tests`.
    """
    names = expand(config.filters)
    codes = [extract_code(sample.text) for sample in samples]
    rules: dict[FilterName, Rule] = {
        name: _rule(name, samples, codes, config, runs, behaviours, passed) for name in names
    }
    return [next((name for name in names if rules[name](index)), None) for index in range(len(samples))]


def _rule(
    name: FilterName,
    samples: Sequence[Sample],
    codes: Sequence[str | None],
    config: FilterConfig,
    runs: Collection[Key] | None,
    behaviours: Mapping[Key, str | None] | None,
    passed: Collection[Key] | None,
) -> Rule:
    shown = [s.text if code is None else code for s, code in zip(samples, codes, strict=True)]
    if name == "empty":
        return lambda i: not samples[i].text.strip()
    if name == "stub":
        return lambda i: is_stub(shown[i])
    if name == "truncated":
        return lambda i: samples[i].finish_reason == "length"
    if name == "unparsable":
        return lambda i: codes[i] is None or parse(shown[i]) is None
    if name == "does_not_run":
        if runs is None:
            raise ValueError("does_not_run needs the samples that ran")
        return lambda i: key(samples[i]) not in runs
    if name == "minority":
        if behaviours is None:
            raise ValueError("minority needs what the samples did")
        usual = _usual(behaviours)
        return lambda i: key(samples[i]) not in usual
    if name == "fails_tests":
        if passed is None:
            raise ValueError("fails_tests needs the samples that passed")
        return lambda i: key(samples[i]) not in passed
    if name == "duplicate":
        repeated = _repeated(samples, codes)
        return lambda i: repeated[i]
    if name == "too_short":
        short = _extreme([len(sample.text) for sample in samples], config.too_short_share)
        return lambda i: i in short
    if name == "too_long":
        long = _extreme([-len(sample.text) for sample in samples], config.too_long_share)
        return lambda i: i in long
    if name == "surprise":
        mean = np.array([s.logprob / max(len(s.token_ids), 1) for s in samples])
        low, high = np.quantile(mean, [config.surprise_low, config.surprise_high])
        return lambda i: not low <= mean[i] <= high
    raise AssertionError(name)


def _extreme(sizes: Sequence[int], share: float) -> set[int]:
    """Indices of the smallest share; ties are broken by position, so the count is exact."""
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i], i))
    return set(order[: int(share * len(sizes) + 1e-9)])


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


def _repeated(samples: Sequence[Sample], codes: Sequence[str | None]) -> list[bool]:
    """Whether an earlier sample of the same prompt has the same program, names and layout apart."""
    seen: set[tuple[str, str]] = set()
    repeated = []
    for sample, code in zip(samples, codes, strict=True):
        shape = (canonical_hash(code) if code is not None else None) or sample.text
        repeated.append((sample.prompt_id, shape) in seen)
        seen.add((sample.prompt_id, shape))
    return repeated


def run(
    config: FilterConfig,
    samples: Sequence[Sample],
    *,
    out: Path,
    runs: Collection[Key] | None = None,
    behaviours: Mapping[Key, str | None] | None = None,
    passed: Collection[Key] | None = None,
) -> Metrics:
    """Write ``kept.parquet`` and ``dropped.parquet``.

    The metrics have quantiles over the kept samples of their mean negative log-likelihood, nats per token,
    under the law that drew them.

    Raises:
        StageFailedError: nothing is left to train on.
    """
    reasons = judge(samples, config, runs=runs, behaviours=behaviours, passed=passed)
    kept = [sample for sample, why in zip(samples, reasons, strict=True) if why is None]
    dropped = [Dropped(*key(sample), why) for sample, why in zip(samples, reasons, strict=True) if why]
    if not kept:
        common, count = Counter(row.reason for row in dropped).most_common(1)[0]
        raise StageFailedError(
            f"no sample is left after filtering ({count} of {len(samples)} dropped as {common}); "
            "loosen filter.filters or lower sample.temperature"
        )
    write_rows(out / KEPT, Sample, kept)
    write_rows(out / DROPPED, Dropped, dropped)
    counts = Counter(row.reason for row in dropped)
    # How surprising the training set is to the model that wrote it: it narrows before pass rates do.
    nll = [-sample.logprob / max(len(sample.token_ids), 1) for sample in kept]
    return {
        "kept": len(kept),
        "kept_share": len(kept) / len(samples),
        "kept_tokens": sum(len(sample.token_ids) for sample in kept),
        **quantiles("nll", nll),
        **{f"dropped_{name}": counts[name] for name in expand(config.filters)},
    }
