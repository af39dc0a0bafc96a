"""python benchmarks/row_memory.py [--rows 1000000] [--stages sample filter train]: memory of a round's rows.

Answers are made up, prompts of 120 tokens and 40 to 400 tokens each with a Python function in it, because no
model draws a million here, and template and tokenizer are left out; the rest is the stages' own code. `train`
is what comes before the first step: both passes over the rows, the mapped file, and reading order. Each stage
is a process of its own. Prints rows, seconds and peak memory that no file stands behind.
"""

import argparse
import json
import multiprocessing
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ssd_loop import filtering, mixing, sampling
from ssd_loop.config import FilterConfig, SampleConfig
from ssd_loop.engines import Completion, Request
from ssd_loop.problems import Problem
from ssd_loop.records import Sample, Stored, write_rows
from ssd_loop.training_rows import on_disk, reading_order

PROMPT_TOKENS, SHORTEST, LONGEST = 120, 40, 400
SAMPLES_PER_PROMPT = 8


def main() -> None:
    """Write the samples, run the stages, print one line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--filters", nargs="+", default=["raw"], help="any that run no code")
    parser.add_argument("--folder", type=Path, help="where the files go for a while")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        root = Path(scratch)
        write_rows(root / sampling.SAMPLES, Sample, samples(options.rows))
        size = (root / sampling.SAMPLES).stat().st_size
        about = {"rows": options.rows, "file_gib": round(size / 2**30, 2), "filters": options.filters}
        for stage in options.stages:
            context = multiprocessing.get_context("spawn")
            answer = context.SimpleQueue()
            child = context.Process(target=measure, args=(stage, root, options.rows, options.filters, answer))
            child.start()
            print(json.dumps({"stage": stage} | about | answer.get()), flush=True)
            child.join()


def measure(
    stage: str, root: Path, rows: int, filters: list[str], answer: multiprocessing.SimpleQueue
) -> None:
    """Run one stage, and send what it took."""
    before, peak, over = anonymous_gib(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.05):
            peak = max(peak, anonymous_gib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    STAGES[stage](root, rows, filters)
    seconds = round(time.perf_counter() - began, 1)
    over.set()
    watcher.join()
    answer.put({"seconds": seconds, "peak_gib": round(peak, 2), "before_gib": round(before, 2)})


def sample(root: Path, rows: int, _filters: list[str]) -> None:
    """Draw a round's samples and write them."""
    out = root / "sample"
    out.mkdir()
    prompts = [
        Problem(panel="train", id=f"problem-{n:07d}", tier="easy", kind="function", prompt="", tests="")
        for n in range(-(-rows // SAMPLES_PER_PROMPT))
    ]
    sampling.run(
        SampleConfig(samples_per_prompt=SAMPLES_PER_PROMPT, max_new_tokens=LONGEST),
        prompts,
        sampling.Drawing(Words(), (2,), 0, SampleConfig().shard_size),
        engine=MadeUp(),
        round_index=1,
        policy_round=1,
        out=out,
    )


class Words:
    """In the place of a chat template and a tokenizer."""

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        """A prompt of its own for every problem."""
        return tuple(random.Random(problem.id).choices(range(49152), k=PROMPT_TOKENS))

    def text(self, token_ids: Sequence[int], _stop: Sequence[int]) -> str:
        """A text of the length that the answer would have."""
        return "word " * len(token_ids)

    def template_sha256(self) -> str:
        """There is none."""
        return ""


class MadeUp:
    """In the place of a model."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Answers of many lengths."""
        rng = random.Random(2)
        for _ in requests:
            length = rng.randint(SHORTEST, LONGEST)
            yield Completion(tuple(rng.choices(range(49152), k=length)), "stop", -rng.random() * length)


def sift(root: Path, _rows: int, filters: list[str]) -> None:
    """Filter the samples of a round."""
    filtering.run(FilterConfig(filters=filters), Stored(root / sampling.SAMPLES, Sample), out=root)


def train(root: Path, _rows: int, _filters: list[str]) -> None:
    """Read a round's samples as a training does before its first step, and every batch of two epochs."""
    rows = mixing.Mixture(mixing.Chosen("replace", [Stored(root / sampling.SAMPLES, Sample)], 0), human=[])
    sum(len(row.token_ids) for row in rows)  # what progress and costs are told
    with on_disk(rows, root) as (dataset, lengths):
        order = reading_order(lengths.sum(axis=1).tolist(), batch_size=8, epochs=2, seed=0)
        ordered = dataset.select(order)
        for first in range(0, len(ordered), 8):
            ordered[first : first + 8]


STAGES: dict[str, Callable[[Path, int, list[str]], None]] = {
    "sample": sample,
    "filter": sift,
    "train": train,
}


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
            prompt_id=f"problem-{n // SAMPLES_PER_PROMPT:07d}",
            sample_index=n % SAMPLES_PER_PROMPT,
            seed=rng.getrandbits(62),
            policy_round=0,
            prompt_token_ids=tuple(rng.choices(range(49152), k=PROMPT_TOKENS)),
            token_ids=tuple(rng.choices(range(49152), k=length)),
            text="" if n % 64 == 1 else code,
            finish_reason="length" if n % 20 == 0 else "stop",
            logprob=-rng.random() * length,
        )


def anonymous_gib() -> float:
    """Memory of this process that no file stands behind; pages of mapped files go whenever there is need."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 2**20


if __name__ == "__main__":
    main()
