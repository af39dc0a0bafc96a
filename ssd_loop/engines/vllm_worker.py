"""The process that runs vLLM for `ssd_loop.engines.vllm`; started as a module, never imported by a run.

Everything happens in one process, and all requests are known before the first step. So the same list of
requests always makes the same batches, and with them the same bytes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from ssd_loop.engines import Completion, Request, TokenScores, WeightsState
from ssd_loop.memory import trim

if TYPE_CHECKING:
    import torch
    from vllm import RequestOutput, SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine

CPU_SEQUENCES = 128  # at once; 64 draw 1.1 to 1.2 times slower on two cores
CPU_BLOCK_TOKENS = 32  # prompts share whole blocks; the smallest that vLLM's CPU attention takes
CPU_KV_CACHE_BYTES = 1 << 30
CPU_BATCHED_TOKENS = 4096  # per step


def main() -> None:
    """Answer the run's messages until it closes the connection."""
    connection, life, folder = Connection(int(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=die_with_the_run, args=(life, folder), daemon=True).start()
    try:
        _, weights, *arguments = connection.recv()
        engine, device = start(*arguments)
        connection.send(device)
        while True:
            command, *arguments = connection.recv()
            if command in ("generate", "score"):
                asked, *arguments = arguments
                require_same(asked, weights)
            if command == "generate":
                stream(connection, generate(engine, device, connection.poll, *arguments))
            elif command == "score":
                stream(connection, score(engine, connection.poll, *arguments))
            elif command == "load":
                weights, *arguments = arguments
                load(engine, device, *arguments)  # should it fail, this process ends
                connection.send(None)
            elif command == "release":
                release(engine, device)
                connection.send(None)
    except (EOFError, BrokenPipeError):
        remove_temporary_files(folder)  # this thread may hear of the run's end first
        os._exit(0)  # nothing else needs tidying, and vLLM's own teardown takes seconds


def require_same(asked: WeightsState | None, held: WeightsState | None) -> None:
    """End this process rather than let other weights answer than those that were asked."""
    if asked is None or asked != held:
        raise RuntimeError(f"asked of the weights {asked or 'of an unfinished load'}, holding {held}")


def die_with_the_run(life: int, folder: str) -> None:
    """Kill this process and its children as soon as the run, which holds the other end, is gone."""
    os.read(life, 1)
    remove_temporary_files(folder)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def remove_temporary_files(folder: str) -> None:
    """Remove what a killed run cannot; safe in two threads at once."""
    shutil.rmtree(folder, ignore_errors=True)


def stream(connection: Connection, answers: Iterator[Any]) -> None:
    """Send every answer, then None."""
    for answer in answers:
        connection.send(answer)
    connection.send(None)


def start(
    model_dir: str, dtype: str, max_model_len: int, gpu_memory_utilization: float
) -> tuple[LLMEngine, str]:
    """An engine with the weights in `model_dir`, and the kind of device it runs on."""
    from vllm import EngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.llm_engine import LLMEngine

    device: str = current_platform.device_type
    settings: dict[str, Any] = {
        "model": model_dir,
        "dtype": dtype,
        "max_model_len": max_model_len,
        "seed": 0,
        "skip_tokenizer_init": True,  # only token ids go in and out
        "generation_config": "vllm",  # no sampling defaults from the model folder
        "max_logprobs": -1,  # no limit
        "disable_log_stats": True,
    }
    if device == "cpu":
        import torch

        from ssd_loop.engines import vllm_kernels
        from ssd_loop.engines.vllm_truncation import FastTruncation

        # vLLM compiles a few helpers even in eager mode: seconds at every start, and a C++ compiler to have.
        torch._dynamo.config.disable = True
        settings |= {
            # Compiling costs 5 to 45 s at start and gains too little for shards of minutes.
            "enforce_eager": True,
            "max_num_seqs": CPU_SEQUENCES,
            "block_size": CPU_BLOCK_TOKENS,
            # A prompt prefilled in pieces crashes a request that has a seed of its own ("CPU Generator
            # does not use offset"); whole prompts always fit the budget.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(max_model_len, CPU_BATCHED_TOKENS),
            "kv_cache_memory_bytes": kv_cache_bytes(model_dir, dtype, max_model_len),
            "distributed_executor_backend": "uni",
            "logits_processors": [FastTruncation],
            "ir_op_priority": vllm_kernels.PRIORITY,
        }
    else:
        settings |= {
            "gpu_memory_utilization": gpu_memory_utilization,
            "enable_sleep_mode": True,
        }
    return LLMEngine.from_engine_args(EngineArgs(**settings)), device


def kv_cache_bytes(model_dir: str, dtype: str, max_model_len: int) -> int:
    """Room for many usual sequences and at least one of the longest."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False).get_text_config()
    head_size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tensors: int = 2 * config.num_hidden_layers * config.num_key_value_heads  # keys and values
    bytes_per_token = tensors * head_size * (4 if dtype == "float32" else 2)
    return max(CPU_KV_CACHE_BYTES, 2 * bytes_per_token * max_model_len)


def load(engine: LLMEngine, device: str, model_dir: str) -> None:
    """Put the weights in `model_dir` in place of the ones that are loaded."""
    wake(engine)
    engine.collective_rpc("reload_weights", kwargs={"weights_path": model_dir})
    if device == "cpu":
        engine.apply_model(repack_head)
    engine.reset_prefix_cache()


def repack_head(model: torch.nn.Module) -> None:
    """Bring the output layer up to date: vLLM computes with a packed copy of its weights on a CPU.

    A reload renews that copy for every tensor it finds in the file, and so not for an output layer that
    is tied to the input embedding and has no tensor of its own.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)


def release(engine: LLMEngine, device: str) -> None:
    """Hand back memory that the next stages want: the cache, and on a device the weights too."""
    if device == "cpu":
        engine.collective_rpc(hand_back)
    elif not engine.is_sleeping():
        engine.sleep(level=1)


def hand_back(worker: Any) -> None:
    """Give the operating system the pages of vLLM's cache, and freed memory that glibc keeps.

    Pages come back as zeros when they are touched again; every list of requests begins with an empty cache.
    """
    libc = ctypes.CDLL(None)
    for cache in worker.model_runner.kv_caches:
        start = -(-cache.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (cache.data_ptr() + cache.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start:
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
    trim()


def wake(engine: LLMEngine) -> None:
    """Undo `release`."""
    if engine.is_sleeping():
        engine.wake_up()


def generate(
    engine: LLMEngine, device: str, is_cancelled: Callable[[], bool], requests: Sequence[Request]
) -> Iterator[Completion]:
    """Completions in the order of the requests."""
    jobs = [(request.prompt_token_ids, sampling(request, device)) for request in requests]
    for output in run(engine, is_cancelled, jobs):
        answer = output.outputs[0]
        yield Completion(tuple(answer.token_ids), answer.finish_reason, answer.cumulative_logprob)


def sampling(request: Request, device: str) -> SamplingParams:
    """The vLLM form of a request's sampling law; the stop tokens are the request's and no others."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    cut: dict[str, Any] = {"top_k": request.top_k, "top_p": request.top_p}
    is_greedy = request.temperature == 0.0
    if is_greedy or cut == {"top_k": 0, "top_p": 1.0}:
        cut = {}
    elif device == "cpu":
        cut = {"extra_args": cut}
    return SamplingParams(
        temperature=request.temperature,
        seed=None if is_greedy else request.seed,
        max_tokens=request.max_new_tokens,
        stop_token_ids=list(request.stop_token_ids),
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **cut,
    )


def score(
    engine: LLMEngine,
    is_cancelled: Callable[[], bool],
    texts: Sequence[tuple[int, ...]],
    top_k: int,
) -> Iterator[TokenScores]:
    """The raw law along each text. vLLM cannot only read: it also draws one token, which is dropped."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        temperature=0.0,
        max_tokens=1,
        prompt_logprobs=top_k,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    for output in run(engine, is_cancelled, [(text, params) for text in texts]):
        yield token_scores(output, top_k)


def token_scores(output: RequestOutput, top_k: int) -> TokenScores:
    """The vLLM dictionaries as arrays: each holds the top k and, if it is not among them, the token."""
    rows = output.prompt_logprobs[1:]
    actual = [row[token].logprob for row, token in zip(rows, output.prompt_token_ids[1:], strict=True)]
    top = [sorted((-entry.logprob, token) for token, entry in row.items())[:top_k] for row in rows]
    shape = (len(rows), top_k)
    return TokenScores(
        logprobs=np.array(actual, dtype=np.float32),
        top_ids=np.array([[token for _, token in row] for row in top], np.int32).reshape(shape),
        top_logprobs=np.array([[-cost for cost, _ in row] for row in top], np.float32).reshape(shape),
    )


def run(
    engine: LLMEngine,
    is_cancelled: Callable[[], bool],
    jobs: Sequence[tuple[tuple[int, ...], SamplingParams]],
) -> Iterator[RequestOutput]:
    """Finished outputs in the order of the jobs, from an empty prefix cache."""
    wake(engine)
    engine.reset_prefix_cache()
    ids = [
        engine.add_request(str(number), {"prompt_token_ids": list(prompt)}, params)
        for number, (prompt, params) in enumerate(jobs)
    ]
    finished: dict[int, RequestOutput] = {}
    following = 0
    while engine.has_unfinished_requests():
        if is_cancelled():
            engine.abort_request(ids, internal=True)
            return
        for output in engine.step():
            if output.finished:
                finished[int(output.request_id)] = output
        while following in finished:
            yield finished.pop(following)
            following += 1


if __name__ == "__main__":
    main()
