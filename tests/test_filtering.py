"""Each filter alone, their order, and what is written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from ssd_loop import filtering
from ssd_loop.config import FilterConfig, FilterName, RunConfig
from ssd_loop.errors import StageFailedError
from ssd_loop.records import Dropped, Sample, read_rows
from tests.rows import fenced, sample

GOOD = fenced("def f(x):\n    return x + 1")
STUB = fenced("def f(x):\n    pass")
BROKEN = fenced("def f(x:\n    return x")


def reasons(samples: Sequence[Sample], *names: FilterName, **other: object) -> list[FilterName | None]:
    runs = other.pop("runs", None)
    config = FilterConfig.model_validate({"filters": names, **other})
    return filtering.judge(samples, config, runs=runs)  # type: ignore[arg-type]


def test_empty() -> None:
    rows = [sample(""), sample(" \n\t"), sample("words")]
    assert reasons(rows, "empty") == ["empty", "empty", None]


def test_stub_in_a_block_or_without_one() -> None:
    rows = [sample(STUB), sample(GOOD), sample(fenced("x = 1")), sample("one line"), sample("two\nlines")]
    assert reasons(rows, "stub") == ["stub", None, "stub", "stub", None]


def test_truncated() -> None:
    rows = [sample(GOOD, finish_reason="length"), sample(GOOD)]
    assert reasons(rows, "truncated") == ["truncated", None]


def test_unparsable() -> None:
    rows = [sample(BROKEN), sample("no code"), sample(GOOD)]
    assert reasons(rows, "unparsable") == ["unparsable", "unparsable", None]


def test_does_not_run() -> None:
    rows = [sample(GOOD, sample_index=0), sample(GOOD, sample_index=1)]
    assert reasons(rows, "does_not_run", runs={("p", 1)}) == ["does_not_run", None]
    with pytest.raises(ValueError, match="does_not_run"):
        reasons(rows, "does_not_run")


def test_duplicate_keeps_the_first_of_a_prompt() -> None:
    renamed = fenced("def f(value):\n    # plus one\n    return value + 1")
    other = fenced("def f(x):\n    return x + 2")
    rows = [sample(GOOD), sample(renamed), sample(other), sample(GOOD, prompt_id="q"), sample(GOOD)]
    assert reasons(rows, "duplicate") == [None, "duplicate", None, None, "duplicate"]


def test_duplicate_compares_the_text_where_there_is_no_program() -> None:
    rows = [sample("words"), sample("other words"), sample("words"), sample(BROKEN), sample(BROKEN)]
    assert reasons(rows, "duplicate") == [None, None, "duplicate", None, "duplicate"]


@pytest.mark.parametrize(
    ("count", "share", "dropped"), [(10, 0.1, 1), (10, 0.0, 0), (10, 1.0, 10), (9, 0.1, 0), (100, 0.29, 29)]
)
def test_too_short_and_too_long_drop_their_share(count: int, share: float, dropped: int) -> None:
    rows = [sample("x" * (1 + i * 7 % count)) for i in range(count)]
    short = reasons(rows, "too_short", too_short_share=share)
    long = reasons(rows, "too_long", too_long_share=share)
    assert short.count("too_short") == long.count("too_long") == dropped
    sizes = {
        why: [len(row.text) for row, found in zip(rows, short, strict=True) if found == why] for why in short
    }
    assert max(sizes.get("too_short", [0])) < min(sizes.get(None, [count + 1]))
    sizes = {
        why: [len(row.text) for row, found in zip(rows, long, strict=True) if found == why] for why in long
    }
    assert min(sizes.get("too_long", [count + 1])) > max(sizes.get(None, [0]))


def test_too_short_drops_no_more_than_its_share_when_all_are_equal() -> None:
    assert reasons([sample("same")] * 10, "too_short", too_short_share=0.2).count("too_short") == 2


def test_surprise_drops_both_ends_of_the_mean_per_token() -> None:
    rows = [sample(GOOD, logprob=-float(i) * (1 + i % 3), token_ids=(1,) * (1 + i % 3)) for i in range(21)]
    found = reasons(rows, "surprise", surprise_low=0.05, surprise_high=0.95)
    assert [i for i, why in enumerate(found) if why] == [0, 20]


def test_surprise_takes_a_sample_without_tokens() -> None:
    rows = [sample("", token_ids=(), logprob=0.0), *[sample(GOOD, logprob=-float(i)) for i in range(1, 40)]]
    assert reasons(rows, "surprise")[0] == "surprise"


def test_the_first_filter_that_matches_is_the_reason() -> None:
    cut_stub = sample(STUB, finish_reason="length")
    assert reasons([cut_stub], "stub", "truncated") == ["stub"]
    assert reasons([cut_stub], "truncated", "stub") == ["truncated"]


def test_raw_drops_only_empty_answers_and_stubs() -> None:
    rows = [
        sample(""),
        sample(STUB),
        sample(BROKEN),
        sample(GOOD, finish_reason="length"),
        sample(GOOD),
        sample("much\ntalk"),
    ]
    assert reasons(rows, "raw") == ["empty", "stub", None, None, None, None]
    assert reasons(rows, "raw") == reasons(rows, "empty", "stub")


def test_raw_does_not_repeat_a_filter() -> None:
    assert filtering.expand(["stub", "raw", "truncated"]) == ["stub", "empty", "truncated"]


def test_what_is_written_and_counted(tmp_path: Path) -> None:
    rows = [
        sample(GOOD, sample_index=0, token_ids=(1, 2, 3), logprob=-3.0),
        sample("", sample_index=1),
        sample(STUB, sample_index=2),
        sample(GOOD, sample_index=3, token_ids=(1, 2), logprob=-4.0),
        sample("", sample_index=4),
    ]
    metrics = filtering.run(FilterConfig(filters=("raw", "truncated")), rows, out=tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["dropped.parquet", "kept.parquet"]
    assert read_rows(tmp_path / filtering.KEPT, Sample) == [rows[0], rows[3]]
    assert read_rows(tmp_path / filtering.DROPPED, Dropped) == [
        Dropped("p", 1, "empty"),
        Dropped("p", 2, "stub"),
        Dropped("p", 4, "empty"),
    ]
    assert metrics == {
        "kept": 2,
        "kept_share": 0.4,
        "kept_tokens": 5,
        **{f"nll_q{q:02d}": pytest.approx(1 + q / 100) for q in (5, 25, 50, 75, 95)},  # of 1 and 2 nats
        "dropped_empty": 2,
        "dropped_stub": 1,
        "dropped_truncated": 0,
    }


def test_nothing_left_fails_with_the_commonest_reason(tmp_path: Path) -> None:
    rows = [sample(STUB), sample(""), sample(STUB)]
    with pytest.raises(StageFailedError, match="2 of 3 dropped as stub") as caught:
        filtering.run(FilterConfig(), rows, out=tmp_path)
    assert "filter.filters" in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_minority_drops_what_behaves_otherwise_than_most_of_its_prompt() -> None:
    told = {("p", 0): "a", ("p", 1): "b", ("p", 2): "a", ("p", 3): None, ("q", 0): "x", ("q", 1): "y"}
    rows = [sample("def f():\n    return 1\n", prompt_id=name, sample_index=i) for name, i in told]
    config = FilterConfig(filters=("minority",))
    found = filtering.judge(rows, config, behaviours=told)
    assert found == [None, "minority", None, "minority", None, None]  # equally common ones stay
    with pytest.raises(ValueError, match="minority"):
        filtering.judge(rows, config)


def test_fails_tests_keeps_what_passed() -> None:
    rows = [sample("def f():\n    return 1\n", sample_index=i) for i in range(3)]
    config = FilterConfig(filters=("fails_tests",))
    assert filtering.judge(rows, config, passed={("p", 1)}) == ["fails_tests", None, "fails_tests"]
    with pytest.raises(ValueError, match="fails_tests"):
        filtering.judge(rows, config)


def test_minority_needs_several_samples_of_a_prompt() -> None:
    with pytest.raises(ValueError, match="samples_per_prompt"):
        RunConfig.model_validate({"filter": {"filters": ["minority"]}})
