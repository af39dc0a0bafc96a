"""All speed benchmarks, and their tables.

    python -m benchmarks.speed --out FOLDER [--parts sampling,training,rounds,growth] [--repeats 3]

Every part is a process of its own and writes FOLDER/<part>.json; speed.md holds the tables of all parts that
are there. Ratios are taken between arms that ran in turn, never with figures from another day.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.collapse.pages import table
from benchmarks.speed import growth, machine, sampling, training
from benchmarks.speed.part import ROOT

Found = Mapping[str, Any]


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median and range."""
    middle, low, high = statistics.median(values), min(values), max(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def sampling_tables(found: Found) -> list[str]:
    """Rates by arm and law, start and swap."""
    rows, swaps = [], []
    for law, arms in found["laws"].items():
        rates = {arm: [run["tokens_per_s"] for run in runs] for arm, runs in arms.items()}
        plain = statistics.median(rates[sampling.PLAIN])
        for arm, values in rates.items():
            ratio = f"{statistics.median(values) / plain:.2f}"
            starts = spread([run["start_s"] for run in arms[arm]], 1)
            rows.append([f"{arm}, {law}", spread(values), ratio, starts])
        swaps += [run["swap_s"] for run in arms[sampling.OURS]]
    title = f"## Sampling: {found['prompts']} prompts, at most {found['max_new_tokens']} new tokens\n"
    return [
        title,
        table(["Arm", "Drawn tokens/s", "To plain vLLM", "Start, s"], rows),
        f"A swap of weights takes {spread(swaps, 2)} s.\n",
    ]


def training_tables(found: Found) -> list[str]:
    """Rates by arm, and the share of the products' own rate."""
    rates = found["tokens_per_s"]
    plain = statistics.median(rates[training.DEFAULTS])
    rows = [
        [name, spread(values), f"{statistics.median(values) / plain:.2f}", f"{found['peak_gib'][name]:.1f}"]
        for name, values in rates.items()
    ]
    peak = spread(found["product_peak_gflops"])
    return [
        f"## Training: {found['tokens']} tokens of prompts and answers, LoRA of rank 16\n",
        table(["Arm", "Tokens/s", "To TRL's defaults", "Peak memory, GiB"], rows),
        f"{found['flops_per_token'] / 1e6:.0f} million operations a token; matrix products of these shapes "
        f"reach {peak} GFLOP/s here, of which training uses {100 * found['share_of_peak']:.0f} %.\n",
    ]


def rounds_tables(found: Found) -> list[str]:
    """A round against the peer's pass, the whole run, and short commands."""
    peer, whole = found["peer"], found["run"]
    rows = [
        ["ssd_loop, one round, engine warm", spread(found["round_s"])],
        [f"TRL {peer[0]['trl']} SSDTrainer, one pass", spread([run["seconds"] for run in peer])],
        ["the same with its start-up", spread([run["with_start_s"] for run in peer])],
        ["five rounds of the default recipe, wall", f"{whole['wall_s']:.0f}"],
        ["of it drawing, scoring and training steps", f"{whole['busy_s']:.0f}"],
    ]
    stages: dict[str, float] = {}
    for name, seconds in whole["stages_s"].items():
        stage = name.partition("/")[2]
        stages[stage] = stages.get(stage, 0.0) + seconds
    shown = [
        [stage, f"{seconds:.0f}"] for stage, seconds in sorted(stages.items(), key=lambda item: -item[1])
    ]
    short = [[f"`{name}`", spread(values, 2)] for name, values in found["commands_s"].items()]
    return [
        "## Rounds\n",
        table(["What", "Seconds"], rows),
        f"A round is {found['times_faster']:.1f} times as fast as a pass of the peer. The whole run takes "
        f"{found['wall_over_busy']:.2f} of the time that the device is at work; its processes together peak "
        f"at {whole['peak_gib']:.1f} GiB.\n",
        table(["Stage of the five rounds", "Seconds"], shown),
        table(["Command", "Seconds"], short),
    ]


def growth_tables(found: Found) -> list[str]:
    """What a round costs early and late, and a merge by number of adapters."""
    rounds, size = found["rounds"], growth.GROUP
    rows = [
        [f"{at * size + 1} to {(at + 1) * size}", f"{seconds:.2f}", f"{held / 1e6:.2f}"]
        for at, (seconds, held) in enumerate(
            zip(found["round_s_by_group"], found["round_bytes_by_group"], strict=True)
        )
    ]
    merges = [
        [adapters, *(spread(times[name], 1) for name in ("merge", "gate"))]
        for adapters, times in found["merges_s"].items()
    ]
    short = [[f"`{name}`", spread(values, 2)] for name, values in rounds["commands_s"].items()]
    return [
        f"## Growth: {growth.ROUNDS} rounds of a tiny model, merges of the default one\n",
        table(["Rounds", "Seconds a round", "MB on disk a round"], rows),
        table(["Adapters", "Merge, s", "Gate, s"], merges),
        table([f"Command after {growth.ROUNDS} rounds", "Seconds"], short),
    ]


TABLES: dict[str, Callable[[Found], list[str]]] = {
    "sampling": sampling_tables,
    "training": training_tables,
    "rounds": rounds_tables,
    "growth": growth_tables,
}
PARTS = tuple(TABLES)


def main() -> None:
    """Measure the parts that are asked for; show all that are there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results and tables")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated; none: ''")
    parser.add_argument("--repeats", type=int, default=3, help="of every arm, in turn")
    given = parser.parse_args()
    parts = [part for part in given.parts.split(",") if part]
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if parts:
        about = machine.described() | {"copy_gib_s": machine.copy_gib_s()}
        (out / "machine.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    for part in parts:
        print(f"{part}: under way", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", f"benchmarks.speed.{part}", "--out", str(out)]
        subprocess.run([*command, "--repeats", str(given.repeats)], cwd=ROOT, check=True)
    text = tables(out)
    (out / "speed.md").write_text(text, encoding="utf-8")
    print(text)


def tables(out: Path) -> str:
    """The tables of all parts that were measured in a folder."""
    about = json.loads((out / "machine.json").read_text(encoding="utf-8"))
    device = ", ".join(about["gpus"]) or about["processor"]
    where = f"{device}, {about['cores']} cores, {about['memory_gib']:.0f} GiB"
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    pages = ["# Speed\n", f"{where}; memory copies at {about['copy_gib_s']:.0f} GiB/s. {versions}.\n"]
    for part, shown in TABLES.items():
        file = out / f"{part}.json"
        if file.is_file():
            pages += shown(json.loads(file.read_text(encoding="utf-8")))
    return "\n".join(pages)


if __name__ == "__main__":
    main()
