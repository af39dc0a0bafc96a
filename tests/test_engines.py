"""Both engines keep one contract, checked on tiny models against a plain forward pass."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from ssd_loop.config import EngineConfig
from ssd_loop.engines import Engine, Request, engine_name, open_engine, vllm_worker
from ssd_loop.engines.transformers import draw
from ssd_loop.engines.truncation import truncate
from ssd_loop.errors import ConfigError, SsdLoopError, StageFailedError
from ssd_loop.models import stop_token_ids
from tests import tiny

ENGINES = [
    "transformers",
    pytest.param(
        "vllm",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed"),
        ],
    ),
]
MAX_MODEL_LEN = 256
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with other weights, as after a round of training."""
    return tiny.build("llama", tmp_path_factory.mktemp("trained"), seed=1)


@pytest.fixture(scope="module", params=ENGINES)
def shared(request):
    """One engine for the whole module: a start costs seconds."""
    engine = opened(request.param)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: Engine, tiny_llama: Path) -> Engine:
    shared.load(tiny_llama)
    return shared


def opened(name: str) -> Engine:
    # In float32 no two tokens tie, and a mistake cannot hide in rounding.
    return open_engine(EngineConfig(name=name, max_model_len=MAX_MODEL_LEN), "float32")


def prompt(number: int) -> tuple[int, ...]:
    """Prompts of unequal lengths, so that padding and packing matter."""
    return tuple((7 * number + 3 * position) % 300 + 3 for position in range(5 + number % 11))


def requests(folder: Path, count: int = 40, **changes) -> list[Request]:
    settings = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": NEW_TOKENS,
        "stop_token_ids": stop_token_ids(folder),
        **changes,
    }
    return [Request(prompt_token_ids=prompt(i), seed=1000 + i, **settings) for i in range(count)]


def forward(folder: Path, ids: tuple[int, ...]) -> torch.Tensor:
    """Log-probs (T - 1, V) of a plain forward pass in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, :-1].log_softmax(dim=1)


def test_same_requests_give_the_same_bytes(engine, tiny_llama):
    for law in ({}, {"top_k": 20, "top_p": 0.8}, {"temperature": 0.0}):
        wanted = requests(tiny_llama, **law)
        assert list(engine.generate(wanted)) == list(engine.generate(wanted))


def test_an_answer_ends_with_its_stop_token_or_at_the_limit(engine, tiny_llama):
    stops = stop_token_ids(tiny_llama)
    answers = list(engine.generate(requests(tiny_llama, count=64)))
    for answer in answers:
        *body, last = answer.token_ids
        assert not set(body) & set(stops)
        assert answer.finish_reason == ("stop" if last in stops else "length")
        assert answer.finish_reason == "stop" or len(answer.token_ids) == NEW_TOKENS
    ends = Counter(answer.token_ids[-1] for answer in answers if answer.finish_reason == "stop")
    assert set(ends) == set(stops), "both stop tokens should come up"
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}


def test_logprob_is_that_of_the_raw_law(engine, tiny_llama):
    wanted = requests(tiny_llama, count=8, temperature=1.6, top_k=20, top_p=0.8)
    for request, answer in zip(wanted, engine.generate(wanted), strict=True):
        ids = request.prompt_token_ids + answer.token_ids
        logprobs = forward(tiny_llama, ids).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        expected = logprobs[len(request.prompt_token_ids) - 1 :].sum().item()
        assert answer.logprob == pytest.approx(expected, abs=2e-3)


def test_scores_are_those_of_a_forward_pass(engine, tiny_llama):
    texts = [prompt(i) + prompt(i + 1) for i in range(5)]
    scores = list(engine.score(texts, top_k=7))
    assert len(scores) == len(texts)
    for text, score in zip(texts, scores, strict=True):
        expected = forward(tiny_llama, text)
        rows = np.arange(len(text) - 1)
        assert score.top_ids.shape == score.top_logprobs.shape == (len(text) - 1, 7)
        assert (np.diff(score.top_logprobs, axis=1) <= 0).all()
        np.testing.assert_allclose(score.logprobs, expected[rows, text[1:]], atol=1e-3)
        np.testing.assert_allclose(score.top_logprobs, expected.topk(7).values, atol=1e-3)
        np.testing.assert_allclose(
            score.top_logprobs, expected[rows[:, None], score.top_ids.astype(int)], atol=1e-3
        )


def test_only_the_seed_makes_answers_differ(engine, tiny_llama):
    request = requests(tiny_llama, count=1)[0]
    seeds = [0, 1, 2, 3, 0, 1, 2, 3, 2**31 - 1, 2**62 + 4]  # PyTorch's CPU generator reads the low 32 bits
    drawn = [
        answer.token_ids
        for answer in engine.generate(
            [Request(request.prompt_token_ids, seed, 1.0, 0, 1.0, NEW_TOKENS, ()) for seed in seeds]
        )
    ]
    assert drawn[:4] == drawn[4:8]
    assert len(set(drawn)) == 6


def test_top_k_of_one_is_greedy(engine, tiny_llama):
    one = list(engine.generate(requests(tiny_llama, count=8, top_k=1)))
    nucleus = list(engine.generate(requests(tiny_llama, count=8, top_p=1e-6)))
    assert one == nucleus == list(engine.generate(requests(tiny_llama, count=8, temperature=0.0)))


def test_truncation_keeps_only_the_likeliest(engine, tiny_llama):
    wanted = requests(tiny_llama, temperature=2.0, top_k=3, stop_token_ids=())
    for request, answer in zip(wanted[:4], engine.generate(wanted), strict=False):
        ids = request.prompt_token_ids + answer.token_ids
        laws = forward(tiny_llama, ids)[len(request.prompt_token_ids) - 1 :]
        third = laws.topk(3).values[:, -1]
        drawn = laws.gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        assert (drawn >= third - 1e-3).all()


def test_swapped_weights_answer_like_a_fresh_engine(engine, tiny_llama, trained):
    wanted = requests(tiny_llama)
    before = list(engine.generate(wanted))
    engine.load(trained)
    swapped = list(engine.generate(wanted))
    texts = [prompt(1), prompt(9)]
    swapped_scores = list(engine.score(texts, top_k=3))
    engine.load(tiny_llama)
    assert list(engine.generate(wanted)) == before
    fresh = opened(engine.name)
    try:
        fresh.load(trained)
        assert list(fresh.generate(wanted)) == swapped != before
        for one, other in zip(swapped_scores, fresh.score(texts, top_k=3), strict=True):
            np.testing.assert_array_equal(one.logprobs, other.logprobs)
    finally:
        fresh.close()
        fresh.close()


def test_an_abandoned_iterator_leaves_the_engine_usable(engine, tiny_llama):
    wanted = requests(tiny_llama)
    expected = list(engine.generate(wanted))
    iterator = engine.generate(wanted)
    assert next(iterator) == expected[0]
    iterator.close()
    assert list(engine.generate(wanted)) == expected


def test_release_changes_no_answer(engine, tiny_llama):
    wanted = requests(tiny_llama, count=8)
    before = list(engine.generate(wanted))
    engine.release()
    assert list(engine.generate(wanted)) == before


def test_what_does_not_fit_is_refused_at_once(engine, tiny_llama):
    for wanted in (requests(tiny_llama, max_new_tokens=MAX_MODEL_LEN), [long_request(0)]):
        with pytest.raises(ConfigError, match=f"max_model_len {MAX_MODEL_LEN}"):
            engine.generate(wanted)
    list(engine.generate([long_request(1)]))
    for text in ([5], [5] * (MAX_MODEL_LEN + 1)):
        with pytest.raises(ConfigError, match=f"text of {len(text)} tokens"):
            engine.score([text], top_k=1)


def long_request(room: int) -> Request:
    """A request that leaves that many tokens for the answer, and asks for one."""
    return Request((5,) * (MAX_MODEL_LEN - room), 0, 1.0, 0, 1.0, 1, ())


def test_nothing_is_asked_for_nothing(engine):
    assert list(engine.generate([])) == []
    assert list(engine.score([], top_k=1)) == []


def test_a_context_beyond_the_model_is_refused(tiny_llama):
    engine = open_engine(EngineConfig(name="transformers", max_model_len=4096), "bfloat16")
    with pytest.raises(ConfigError, match="context of 2048 tokens"):
        engine.load(tiny_llama)


def test_a_missing_device_is_named():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(SsdLoopError, match=r"engine\.device is cuda"):
        open_engine(EngineConfig(name="transformers", device="cuda"), "bfloat16")


def test_auto_takes_vllm_where_it_imports():
    expected = "vllm" if find_spec("vllm") else "transformers"
    assert engine_name(EngineConfig()) == expected
    assert engine_name(EngineConfig(name="transformers")) == "transformers"


def test_choosing_an_engine_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from ssd_loop.config import EngineConfig\n"
        "from ssd_loop.engines import engine_name\n"
        "import ssd_loop.engines.vllm\n"
        "engine_name(EngineConfig())\n"
        "sys.exit(bool({'torch', 'vllm', 'transformers'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


LEADER = """
import sys, time
from pathlib import Path
from ssd_loop.config import EngineConfig
from ssd_loop.engines import Request, open_engine

if __name__ == "__main__":
    engine = open_engine(EngineConfig(name="vllm", max_model_len=256), "bfloat16")
    engine.load(Path(sys.argv[1]))
    requests = [Request((5, 6, 7), i, 1.0, 0, 1.0, 200, ()) for i in range(8)]
    print(sum(len(answer.token_ids) for answer in engine.generate(requests)), flush=True)
    for _ in range(10_000):
        list(engine.generate(requests))
"""


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed")
def test_the_worker_dies_with_a_killed_run(tiny_qwen3, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", LEADER, str(tiny_qwen3)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as leader:
        assert leader.stdout.readline() == "1600\n", leader.stderr.read()
        workers = psutil.Process(leader.pid).children(recursive=True)
        assert workers
        leader.send_signal(signal.SIGKILL)
        leader.wait()
        _, alive = psutil.wait_procs(workers, timeout=5)
        assert not alive
        assert leader.stderr.read() == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed")
def test_other_weights_than_those_asked_never_answer(tiny_qwen3):
    with closing(opened("vllm")) as engine:
        engine.load(tiny_qwen3)
        assert len(list(engine.generate(requests(tiny_qwen3, 8)))) == 8
        engine._loaded = (("elsewhere/model.safetensors", 1, 1),)
        with pytest.raises(StageFailedError, match=r"asked of the weights .*elsewhere"):
            list(engine.generate(requests(tiny_qwen3, 8)))


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed")
def test_the_cache_is_given_back_before_training(tiny_qwen3):
    with closing(opened("vllm")) as engine:
        engine.load(tiny_qwen3)
        before = list(engine.generate(requests(tiny_qwen3, 8)))
        worker = psutil.Process(engine._worker._process.pid)
        held = worker.memory_info().rss
        engine.release()
        assert held - worker.memory_info().rss > 0.9 * vllm_worker.CPU_KV_CACHE_BYTES
        assert list(engine.generate(requests(tiny_qwen3, 8))) == before


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed")
def test_a_worker_that_cannot_start_is_one_sentence(tiny_llama, tmp_path):
    for file in tiny_llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    engine = opened("vllm")
    start = time.monotonic()
    with pytest.raises(StageFailedError, match=r"vLLM stopped with exit status 1: .*rror") as caught:
        engine.load(tmp_path)
    assert len(str(caught.value)) <= 400
    assert time.monotonic() - start < 90
    engine.close()


def naive_truncation(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """One row, by sorting all of it."""
    order = logits.argsort(descending=True)
    kept = order[: top_k or len(order)]
    mass = logits[kept].softmax(dim=0).cumsum(dim=0)
    if top_p < 1.0:
        kept = kept[: int((mass < top_p).sum()) + 1]
    result = torch.full_like(logits, -torch.inf)
    result[kept] = logits[kept]
    return result


@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_truncation_equals_the_sorted_form(spread):
    torch.manual_seed(0)
    laws = [(0, 1.0), (1, 1.0), (20, 0.8), (20, 1.0), (0, 0.8), (0, 0.05), (5000, 0.95), (3, 1e-9)]
    logits = torch.randn(len(laws), 3000) * spread  # flat rows need more than the first candidates
    for chosen in (range(len(laws)), [0], [2, 3], [4], [0, 4]):
        rows = logits[list(chosen)]
        top_k = torch.tensor([laws[i][0] for i in chosen])
        top_p = torch.tensor([laws[i][1] for i in chosen])
        expected = [naive_truncation(row, *laws[i]) for row, i in zip(rows, chosen, strict=True)]
        torch.testing.assert_close(truncate(rows, top_k, top_p), torch.stack(expected))


def test_draws_follow_the_law_and_not_the_neighbours():
    count = 4000
    law = torch.tensor([0.5, 0.25, 0.15, 0.08, 0.02])
    logits = law.log().expand(count, 5)
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    settings = (torch.full((count,), 0.5), torch.full((count,), 4), torch.full((count,), 0.95))
    drawn = draw(logits, *settings, generators)
    expected = law[:4].square() / law[:4].square().sum()  # T 0.5, then top-k 4
    expected = expected[:3] / expected[:3].sum()  # three of them hold 0.981 of the mass
    frequencies = torch.bincount(drawn, minlength=5) / count
    torch.testing.assert_close(frequencies[:3], expected, atol=0.03, rtol=0)
    assert frequencies[3:].sum() == 0
    alone = draw(logits[7:8], *(s[7:8] for s in settings), [torch.Generator().manual_seed(7)])
    assert alone == drawn[7]


@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_fused_norms_compute_what_vllm_defines(dtype):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    code = (
        "import sys, torch\n"
        "from vllm import ir\n"
        "from ssd_loop.engines import vllm_kernels as ours\n"
        "torch.manual_seed(0)\n"
        "kind = getattr(torch, sys.argv[1])\n"
        "x, residual = (torch.randn(5, 96).to(kind) for _ in range(2))\n"
        "weight = torch.rand(96).to(kind)\n"
        "assert ours.fits_fused_norm(x, residual, weight, 1e-5)\n"
        "assert not ours.fits_norm(x[:, ::3], weight[::3], 1e-5)\n"
        "close = {'rtol': 2e-2, 'atol': 0.0} if sys.argv[1] == 'bfloat16' else {'rtol': 1e-5, 'atol': 0.0}\n"
        "native = ir.ops.rms_norm.impls['native'].impl_fn(x, weight, 1e-5)\n"
        "torch.testing.assert_close(ours.rms_norm.impl_fn(x, weight, 1e-5), native, **close)\n"
        "both = ir.ops.fused_add_rms_norm.impls['native'].impl_fn(x, residual, weight, 1e-5)\n"
        "for mine, theirs in zip(ours.fused_add_rms_norm.impl_fn(x, residual, weight, 1e-5), both):\n"
        "    torch.testing.assert_close(mine, theirs, **close)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, dtype], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
