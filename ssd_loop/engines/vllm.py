"""The vLLM engine, seen from the run: it starts one worker process and talks to it.

The worker (`ssd_loop.engines.vllm_worker`) runs the whole of vLLM in a single process of its own. So
vLLM changes no state of the process that trains, a signal to the run's process group does not reach it,
and its memory is surely free once it is gone. It holds one end of a pipe, and kills itself when the
other end closes, whatever the run died of.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from glob import glob
from importlib.util import find_spec
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from ssd_loop.config import EngineConfig
from ssd_loop.engines import (
    CPU_ENVIRONMENT,
    Completion,
    EngineName,
    Request,
    TokenScores,
    WeightsState,
    check_context,
    check_lengths,
    check_texts,
    weights_state,
)
from ssd_loop.errors import SsdLoopError, StageFailedError

CLOSE_TIMEOUT_S = 5.0
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class VllmEngine:
    """vLLM in a worker process that starts with the first `load`."""

    name: EngineName = "vllm"

    def __init__(self, config: EngineConfig, dtype: str) -> None:
        self._config = config
        self._dtype = dtype
        self._worker: Worker | None = None
        self._loaded: WeightsState | None = None

    def load(self, model_dir: Path) -> None:
        """Make the weights in `model_dir` the ones that answer."""
        check_context(model_dir, self._config.max_model_len)
        wanted = weights_state(model_dir)
        if self._worker is None:
            self._worker = Worker(self._config, self._dtype, model_dir, wanted)
        elif wanted != self._loaded:
            self._loaded = None  # neither the old nor the new ones, should this be interrupted
            self._worker.call("load", wanted, str(model_dir))
        self._loaded = wanted

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Completions in the order of the requests."""
        check_lengths(requests, self._config.max_model_len)
        return self._started().stream("generate", self._loaded, tuple(requests))

    def score(self, texts: Sequence[Sequence[int]], top_k: int) -> Iterator[TokenScores]:
        """Log-probs of given token ids, with the `top_k` likeliest tokens at each position."""
        check_texts(texts, self._config.max_model_len)
        return self._started().stream("score", self._loaded, tuple(tuple(text) for text in texts), top_k)

    def release(self) -> None:
        """Give the cache back, and a device's memory; the weights wait in main memory."""
        if self._worker is not None:
            self._worker.call("release")

    def close(self) -> None:
        """End the worker process."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _started(self) -> Worker:
        assert self._worker is not None, "load a model before asking the engine for anything"
        return self._worker


class Worker:
    """The worker process: every call is one message, every answer one or a stream of messages.

    Whatever is asked names the weights that shall answer. A worker that holds others ends instead: answers of
    another round's policy would be worse than none.
    """

    def __init__(self, config: EngineConfig, dtype: str, model_dir: Path, weights: WeightsState) -> None:
        self._config = config
        self._folder = tempfile.TemporaryDirectory(prefix="ssd_loop-vllm-")
        self._log = Path(self._folder.name) / "log.txt"
        self._connection, remote = Pipe()
        life_remote, self._life = os.pipe()
        self._streaming = False
        with self._log.open("wb") as log, remote:
            # Its own session: an interrupt from the terminal goes to the run, which then closes us.
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "ssd_loop.engines.vllm_worker",
                    str(remote.fileno()),
                    str(life_remote),
                    self._folder.name,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=worker_environment(dict(os.environ), self._folder.name),
                pass_fds=(remote.fileno(), life_remote),
                start_new_session=True,
            )
        os.close(life_remote)
        try:
            self.device: str = self.call(
                "start",
                weights,
                str(model_dir),
                dtype,
                config.max_model_len,
                config.gpu_memory_utilization,
            )
        except BaseException:
            self.close()
            raise
        if config.device not in ("auto", self.device):
            self.close()
            raise SsdLoopError(
                f"engine.device is {config.device}, but the vLLM installed here runs on {self.device}; "
                "set engine.device to auto or install the other build of vLLM"
            )

    def call(self, command: str, *arguments: Any) -> Any:
        """The worker's one answer."""
        self._send(command, *arguments)
        return self._receive()

    def stream(self, command: str, *arguments: Any) -> Iterator[Any]:
        """The worker's answers up to the closing None; giving the iterator up stops the work."""
        assert not self._streaming, "the engine's last iterator is neither exhausted nor closed"
        self._streaming = True
        self._send(command, *arguments)
        return self._answers()

    def _answers(self) -> Iterator[Any]:
        answer: Any = ...
        try:
            while (answer := self._receive()) is not None:
                yield answer
        except GeneratorExit:
            self._send("cancel")
            while self._receive() is not None:
                pass
            raise
        finally:
            self._streaming = False

    def _send(self, command: str, *arguments: Any) -> None:
        try:
            self._connection.send((command, *arguments))
        except BrokenPipeError as error:
            raise self._death() from error

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._death() from error

    def _death(self) -> StageFailedError:
        """What is known about a worker that went away by itself."""
        try:
            status: int | str = self._process.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            status = "not known yet"
        log = self._log.read_text(encoding="utf-8", errors="replace")
        return explained(log, status, self._config.gpu_memory_utilization)

    def close(self) -> None:
        """End the worker and wait until it is gone."""
        self._connection.close()
        self._stop()
        self._folder.cleanup()

    def _stop(self) -> None:
        if self._life >= 0:
            os.close(self._life)
            self._life = -1
        try:
            self._process.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def explained(log: str, status: int | str, gpu_memory_utilization: float) -> StageFailedError:
    """Why a worker went away, and what to do, from what it printed last and its exit status."""
    lines = [line.strip() for line in log.split("\n") if line.strip()]
    if any("OutOfMemoryError" in line or "CUDA out of memory" in line for line in lines):
        return StageFailedError(
            f"vLLM ran out of GPU memory with engine.gpu_memory_utilization {gpu_memory_utilization:g}; "
            "lower it, or lower engine.max_model_len"
        )
    last = lines[-1] if lines else "no message"
    return StageFailedError(
        f"vLLM stopped with exit status {status}: {last[:250]}; run again, or set engine.name to transformers"
    )


def worker_environment(environment: dict[str, str], folder: str) -> dict[str, str]:
    """The environment of the worker: quiet, no usage reports, one process, temporary files in `folder`."""
    path = os.pathsep.join(filter(None, (str(PACKAGE_ROOT), environment.get("PYTHONPATH"))))
    fixed = {
        "PYTHONPATH": path,
        "TMPDIR": folder,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "LD_PRELOAD": ":".join([*preloads(), *filter(None, [environment.get("LD_PRELOAD")])]),
    }
    return CPU_ENVIRONMENT | environment | fixed


def preloads() -> list[str]:
    """The libraries that vLLM's CPU build wants loaded first; none where other builds lack them.

    vLLM sets this for processes it starts (`vllm/platforms/cpu.py`), but the worker runs in one: PyTorch's
    own OpenMP, and the allocator that ships with vLLM.
    """
    patterns = {
        "vllm": ("libs/libtcmalloc_minimal*.so*",),
        "torch": ("../torch.libs/libgomp*.so*", "lib/libgomp*.so*"),
    }
    found: list[str] = []
    for package, places in patterns.items():
        spec = find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or []:
            found += [file for place in places for file in sorted(glob(os.path.join(folder, place)))[:1]]
    return found
