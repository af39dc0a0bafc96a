"""What a round costs late in a run: 20 rounds of a tiny model, merges of 20 adapters of the default one.

    python -m benchmarks.speed.growth --out FOLDER [--repeats 3]

The tiny run is real, with the transformers engine, and takes a minute or two: where the work is small, what
grows with the number of rounds would show. A merge with its gate is the one stage whose work is known to
grow, because the base and the adapters of all rounds are summed again.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.speed import material
from benchmarks.speed.part import main
from benchmarks.speed.rounds import clocked, run
from ssd_loop.place import round_name

if TYPE_CHECKING:
    from ssd_loop.lora import Term

ROUNDS, GROUP = 20, 5
ADAPTERS = (1, 5, 20)
VOCABULARY = 40_000  # of made-up tokens for the gate
AFTER = (["status", "bench"], ["report", "bench"], ["verify", "bench"])


def tiny_run(folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds and bytes of every round, peak memory, and commands on the finished run."""
    from tests import tiny
    from tests.runs import tiny_config

    model = tiny.build("llama", folder / "model")
    config = tiny_config(folder, model, "transformers", rounds=ROUNDS)
    found = run(folder, ["--config", str(config)])
    seconds = [
        sum(s for name, s in found["stages_s"].items() if name.startswith(f"{n}/"))
        for n in range(1, ROUNDS + 1)
    ]
    sizes = [
        sum(bytes_below(folder / kind / "bench" / round_name(n)) for kind in ("rounds", "checkpoints"))
        for n in range(1, ROUNDS + 1)
    ]
    return {
        "round_s": seconds,
        "round_bytes": sizes,
        "peak_gib": found["peak_gib"],
        "commands_s": clocked(folder, AFTER, repeats),
    }


def bytes_below(folder: Path) -> int:
    """Of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def merges(folder: Path, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of a merge and of its gate by number of adapters, in turn."""
    from benchmarks.merge_memory import write_adapter
    from ssd_loop.gate import FIRST_TEXTS, TOKENS

    base = material.bench().base.path
    shapes = linear_layers(base)
    terms = [write_adapter(folder / f"adapter_{n}", shapes, n) for n in range(max(ADAPTERS))]
    rng = random.Random(0)
    texts = [[rng.randrange(VOCABULARY) for _ in range(TOKENS)] for _ in range(FIRST_TEXTS)]
    found: dict[str, dict[str, list[float]]] = {str(n): {"merge": [], "gate": []} for n in ADAPTERS}
    for number in range(repeats + 1):  # the first also reads the base's log-probs, once in a run
        for count in ADAPTERS:
            times = merged(folder, base, terms[:count], texts)
            for name, seconds in times.items():
                if number:
                    found[str(count)][name].append(seconds)
    return found


def merged(folder: Path, base: Path, terms: list[Term], texts: list[list[int]]) -> dict[str, float]:
    """Seconds of one merge and its gate."""
    from ssd_loop import gate
    from ssd_loop.merging import merge

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        out = Path(scratch)
        began = time.perf_counter()
        merge("stochastic", base_dir=base, terms=terms, out=out)
        written = time.perf_counter()
        gate.measure(base, out, terms, texts, "cpu")
        return {"merge": written - began, "gate": time.perf_counter() - written}


def linear_layers(model_dir: Path) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear layer but the output layer, by name."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto")
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


def measure(out: Path, repeats: int) -> dict[str, Any]:
    """Both."""
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        rounds = tiny_run(Path(scratch), repeats)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        adapters = merges(Path(scratch), repeats)
    groups = [slice(at, at + GROUP) for at in range(0, ROUNDS, GROUP)]
    return {
        "rounds": rounds,
        "round_s_by_group": [statistics.median(rounds["round_s"][group]) for group in groups],
        "round_bytes_by_group": [statistics.median(rounds["round_bytes"][group]) for group in groups],
        "merges_s": adapters,
    }


if __name__ == "__main__":
    main(measure, __doc__)
