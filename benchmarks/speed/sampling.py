"""Sampling: this engine against vLLM's `LLM.generate` and transformers' `generate`.

    python -m benchmarks.speed.sampling --out FOLDER [--repeats 3]

All arms answer the same 64 prompts with at most 128 new tokens, each time in a process of its own, after a
short first call. Rates are drawn tokens per second.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.speed import material
from benchmarks.speed.part import alone, main
from ssd_loop.engines import CPU_ENVIRONMENT

OURS, PLAIN = "ssd_loop", "vLLM LLM.generate"
UNCUT = (1.0, 0, 1.0)
LAWS = {"T 1.0, top-k 20, top-p 0.8": material.LAW, "T 1.0, not truncated": UNCUT}
SMALL_BATCH = 32  # of transformers


def ours(law: tuple[float, int, float]) -> dict[str, float]:
    """This engine: its rate, its start, and a swap of weights."""
    began = time.perf_counter()
    of = material.bench()
    asked = material.requests(of, law)
    engine = of.engine(of.base.path)
    list(engine.generate(asked[:8]))
    started = time.perf_counter()
    drawn = sum(len(done.token_ids) for done in engine.generate(asked))
    ended = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        other = Path(scratch) / "model"
        shutil.copytree(of.base.path, other)
        before = time.perf_counter()
        engine.load(other)
        swap_s = time.perf_counter() - before
    of.close()
    return {"tokens_per_s": drawn / (ended - started), "start_s": started - began, "swap_s": swap_s}


def vllms(law: tuple[float, int, float]) -> dict[str, float]:
    """The vLLM library as its documentation uses it, compiled where it compiles by default."""
    from vllm import LLM, SamplingParams

    of = material.bench()
    asked = material.requests(of, law)
    for name in CPU_ENVIRONMENT:  # vLLM's own processes start with none
        os.environ.pop(name, None)
    began = time.perf_counter()
    llm = LLM(
        model=str(of.base.path),
        dtype=of.base.dtype,
        max_model_len=of.config.engine.max_model_len,
        kv_cache_memory_bytes=1 << 30,  # else it asks for nearly all of the machine's memory
    )
    temperature, top_k, top_p = law
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_tokens=material.NEW_TOKENS,
        stop_token_ids=list(of.stop_token_ids),
        seed=None,
    )
    prompts = [{"prompt_token_ids": list(request.prompt_token_ids)} for request in asked]
    llm.generate(prompts[:8], params, use_tqdm=False)
    started = time.perf_counter()
    done = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    drawn = sum(len(one.outputs[0].token_ids) for one in done)
    return {"tokens_per_s": drawn / seconds, "start_s": started - began}


def transformers(law: tuple[float, int, float]) -> dict[str, float]:
    """The `generate` of transformers in batches of 32, padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM

    of = material.bench()
    asked = material.requests(of, law)
    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(of.base.path, dtype="auto")
    started = time.perf_counter()
    drawn = 0
    temperature, top_k, top_p = law
    for first in range(0, len(asked), SMALL_BATCH):
        batch = asked[first : first + SMALL_BATCH]
        width = max(len(request.prompt_token_ids) for request in batch)
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(batch):
            size = len(request.prompt_token_ids)
            ids[row, width - size :] = torch.tensor(request.prompt_token_ids)
            mask[row, width - size :] = 1
        out = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_new_tokens=material.NEW_TOKENS,
            eos_token_id=list(of.stop_token_ids),
            pad_token_id=of.stop_token_ids[0],
        )
        for answer in out[:, width:].tolist():
            ends = [at + 1 for at, token in enumerate(answer) if token in of.stop_token_ids]
            drawn += min(ends, default=len(answer))
    return {"tokens_per_s": drawn / (time.perf_counter() - started), "start_s": started - began}


ARMS = {
    OURS: (ours, tuple(LAWS)),
    PLAIN: (vllms, tuple(LAWS)),
    "transformers generate": (transformers, tuple(LAWS)[:1]),
}


def one(arm: str, law: str) -> dict[str, float]:
    """One arm, once."""
    return ARMS[arm][0](LAWS[law])


def measure(out: Path, repeats: int) -> dict[str, Any]:
    """All arms in turn, so often."""
    asked = [(law, arm) for law in LAWS for arm, (_, laws) in ARMS.items() if law in laws]
    found: dict[str, dict[str, list[dict[str, float]]]] = {law: {} for law in LAWS}
    for _ in range(repeats):
        for law, arm in asked:
            found[law].setdefault(arm, []).append(alone("benchmarks.speed.sampling", arm, law))
    return {"prompts": material.PROMPTS, "max_new_tokens": material.NEW_TOKENS, "laws": found}


if __name__ == "__main__":
    main(measure, __doc__, one)
