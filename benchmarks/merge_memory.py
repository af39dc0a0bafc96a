"""python benchmarks/merge_memory.py [--gib 16] [--shard-gib 4] [--rounds 5]: memory of a large merge.

Writes synthetic bfloat16 shards with the shapes of an 8B Llama and adapters of rank 16 on every linear layer,
and merges them in a process of its own. Prints its peak resident memory and its time. Needs twice the size on
disk.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from ssd_loop.lora import PREFIX, Term
from ssd_loop.merging import merge
from ssd_loop.training import ADAPTER_CONFIG, WEIGHTS

HIDDEN, INNER, KEYS, RANK = 4096, 14336, 1024, 16
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def main() -> None:
    """Make the shards, merge them, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=16.0)
    parser.add_argument("--shard-gib", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files go for a while")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        root = Path(scratch)
        layers = write_base(root / "base", options.gib, options.shard_gib)
        shapes = {f"model.layers.{n}.{name}": shape for n in range(layers) for name, shape in SHAPES.items()}
        terms = [write_adapter(root / f"adapter_{n}", shapes, n) for n in range(options.rounds)]
        context = multiprocessing.get_context("spawn")
        answer = context.SimpleQueue()
        child = context.Process(target=measure, args=(root, terms, answer))
        child.start()
        print(json.dumps(answer.get() | {"layers": layers, "rounds": options.rounds}))
        child.join()


def measure(root: Path, terms: list[Term], answer: multiprocessing.SimpleQueue) -> None:
    """Merge, and send what it took."""
    out = root / "merged"
    out.mkdir()
    before = peak_gib()
    began = time.perf_counter()
    merge("stochastic", base_dir=root / "base", terms=terms, out=out)
    seconds = time.perf_counter() - began
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    answer.put(
        {
            "gib": round(size / 2**30, 2),
            "seconds": round(seconds, 1),
            "peak_rss_gib": peak_gib(),
            "peak_rss_before_gib": before,
        }
    )


def peak_gib() -> float:
    """Peak resident memory of this process, mapped files included; ru_maxrss would count its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20, 2)


def write_base(folder: Path, gib: float, shard_gib: float) -> int:
    """Shards of about `shard_gib` until `gib` are written; how many layers that made."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    torch.manual_seed(0)
    one = {name: torch.randn(shape, dtype=torch.bfloat16) * 0.02 for name, shape in SHAPES.items()}
    layer_bytes = sum(tensor.nbytes for tensor in one.values())
    layers = round(gib * 2**30 / layer_bytes)
    per_shard = max(1, round(shard_gib * 2**30 / layer_bytes))
    for first in range(0, layers, per_shard):
        tensors = {
            f"model.layers.{n}.{name}.weight": tensor.clone()
            for n in range(first, min(layers, first + per_shard))
            for name, tensor in one.items()
        }
        save_file(tensors, folder / f"model-{first:05d}.safetensors", metadata={"format": "pt"})
    return layers


def write_adapter(folder: Path, shapes: Mapping[str, tuple[int, int]], seed: int) -> Term:
    """One adapter of rank 16 on linear layers of these (out, in), by name."""
    folder.mkdir()
    torch.manual_seed(seed)
    tensors = {}
    for name, (rows, columns) in shapes.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.randn(RANK, columns) * 0.01
        tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.randn(rows, RANK) * 0.01
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings))
    return Term(folder)


if __name__ == "__main__":
    main()
