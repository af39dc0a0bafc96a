"""python benchmarks/filter_memory.py [--rows 1000000] [--filters raw duplicate]: memory of filtering a round.

Writes synthetic samples as stage `sample` does, a prompt of 120 tokens and an answer of 40 to 400 each with a
Python function in it, and filters them in a process of its own. Prints rows, seconds and peak memory.
"""

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ssd_loop import filtering
from ssd_loop.config import FilterConfig
from ssd_loop.records import Sample, Stored, write_rows

PROMPT_TOKENS, SHORTEST, LONGEST = 120, 40, 400
SAMPLES = "samples.parquet"


def main() -> None:
    """Write the samples, filter them, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--filters", nargs="+", default=["raw"], help="any that run no code")
    parser.add_argument("--folder", type=Path, help="where the files go for a while")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        root = Path(scratch)
        write_rows(root / SAMPLES, Sample, samples(options.rows))
        context = multiprocessing.get_context("spawn")
        answer = context.SimpleQueue()
        child = context.Process(target=measure, args=(root, options.filters, answer))
        child.start()
        size = (root / SAMPLES).stat().st_size
        print(json.dumps({"rows": options.rows, "file_gib": round(size / 2**30, 2)} | answer.get()))
        child.join()


def measure(root: Path, filters: list[str], answer: multiprocessing.SimpleQueue) -> None:
    """Filter, and send what it took."""
    before = peak_gib()
    began = time.perf_counter()
    config = FilterConfig(filters=filters)
    metrics = filtering.run(config, Stored(root / SAMPLES, Sample), out=root)
    answer.put(
        {
            "filters": filters,
            "kept": metrics["kept"],
            "seconds": round(time.perf_counter() - began, 1),
            "peak_rss_gib": peak_gib(),
            "peak_rss_before_gib": before,
        }
    )


def samples(rows: int) -> Iterator[Sample]:
    """Answers of many lengths; some are empty, stubs, cut, or the same as an earlier one."""
    rng = random.Random(0)
    for n in range(rows):
        length = rng.randint(SHORTEST, LONGEST)
        lines = [f"    x{k} = n * {rng.randrange(1000)} + {k}" for k in range(length // 12)]
        body = "\n".join(lines) if n % 16 else "    pass"
        code = f"```python\ndef solve_{n % 997}(n):\n{body}\n    return n\n```"
        yield Sample(
            panel="train",
            prompt_id=f"problem-{n // 8:07d}",
            sample_index=n % 8,
            seed=rng.getrandbits(62),
            policy_round=0,
            prompt_token_ids=tuple(rng.choices(range(49152), k=PROMPT_TOKENS)),
            token_ids=tuple(rng.choices(range(49152), k=length)),
            text="" if n % 64 == 1 else code,
            finish_reason="length" if n % 20 == 0 else "stop",
            logprob=-rng.random() * length,
        )


def peak_gib() -> float:
    """Peak resident memory of this process, mapped files included; ru_maxrss would count its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20, 2)


if __name__ == "__main__":
    main()
