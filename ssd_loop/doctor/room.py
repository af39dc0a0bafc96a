"""Checks of memory and disk: what each step needs, roughly, against what is free."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssd_loop import evaluation, finals, gate, sweeping
from ssd_loop.config import RunConfig
from ssd_loop.doctor.subject import GIB, Finding, Sizes, Subject, Verdict, gib
from ssd_loop.engines import EngineName, engine_name
from ssd_loop.engines.vllm_worker import CPU_KV_CACHE_BYTES
from ssd_loop.errors import SsdLoopError
from ssd_loop.place import CHECKPOINTS, ROUNDS, Place
from ssd_loop.training_rows import ROWS

ADAPTER_STATE_BYTES = 16  # per parameter, all float32: weight, gradient and Adam's two moments
ADAPTER_FILE_BYTES = 4
# PyTorch, transformers and TRL or vLLM loaded, without a model (measured: 0.8 and 0.7 GiB, x86-64 CPU).
PROCESS_BYTES = 8 * GIB // 10
# What training keeps of each token, over inputs plus outputs of its linear layers in the model's dtype: on a
# CPU, and without `cpu_training` (measured on SmolLM2-135M in bfloat16, 1,024 to 4,096 tokens).
ACTIVATION_FACTOR, PLAIN_FACTOR = 1.15, 2.4
SAMPLE_TOKEN_BYTES = 8  # a token of samples.parquet: its id, and its text
ROW_TOKEN_BYTES = 8  # a token of a training's rows: its id and its label
# Adapters' sizes of two saved states of a training, each with Adam's two moments: the last and the next one.
STATE_ADAPTERS = 6
MEMORY_WARNS, DISK_WARNS = 0.8, 0.85  # shares of what is free
LESS = {
    "sampling": "lower engine.max_model_len, or give vLLM more of a GPU with engine.gpu_memory_utilization",
    "training": "lower train.micro_batch_size or sample.max_new_tokens",
    "merge gate": "take a smaller model or a larger machine",
    "main memory": "take a smaller model or a larger machine",
}


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that one step needs of `room` bytes, where they are, and how to need less."""

    step: str
    bytes: int
    place: str
    room: int
    remedy: str


def check_memory(subject: Subject) -> Finding:
    """What sampling, training and the merge gate need, against what is free."""
    config = subject.config
    on_gpu = subject.bench.device != "cpu"
    lengths = [row.prompt + row.new for row in subject.known_lengths] or [config.engine.max_model_len]
    needs = device_bytes(
        subject.sizes,
        engine=engine_name(config.engine),
        on_gpu=on_gpu,
        trained=lengths[0] * config.train.micro_batch,
        answered=max(lengths),
        max_model_len=config.engine.max_model_len,
    )
    free = available_memory(Path("/proc/meminfo"))
    if not on_gpu:
        return judge_memory([Need(step, needs[step], "memory", free, LESS[step]) for step in needs])
    import torch

    free_gpu, whole_gpu = torch.cuda.mem_get_info()
    in_main = Need(
        "main memory", 2 * (subject.sizes.weights + PROCESS_BYTES), "main memory", free, LESS["main memory"]
    )
    rooms = dict.fromkeys(needs, ("GPU memory", free_gpu))
    if engine_name(config.engine) == "vllm":
        share = int(config.engine.gpu_memory_utilization * whole_gpu)
        if share > free_gpu:
            remedy = "lower engine.gpu_memory_utilization, or stop what else is on the GPU"
            return judge_memory([Need("vLLM's share", share, "GPU memory", free_gpu, remedy)])
        rooms["sampling"] = ("vLLM's share of the GPU", share)
    on_device = [Need(step, needs[step], *rooms[step], LESS[step]) for step in needs]
    return judge_memory([*on_device, in_main])


def device_bytes(
    model: Sizes, *, engine: EngineName, on_gpu: bool, trained: int, answered: int, max_model_len: int
) -> dict[str, int]:
    """Bytes at the peak of each step, on the device that it runs on. Rough: see `activation_bytes`.

    On a CPU the engine keeps its weights while training and the merge gate run; on a GPU it gives way.

    Args:
        model: What the model takes.
        engine: vLLM reserves its KV cache at once; transformers takes what a batch needs.
        on_gpu: Whether the steps run on a GPU.
        trained: Tokens of one forward pass in training.
        answered: Tokens of the longest prompt and its answer.
        max_model_len: Tokens of the longest sequence that the engine takes.
    """
    from ssd_loop.engines.transformers import BATCH_SIZE

    process = 0 if on_gpu else PROCESS_BYTES
    if engine == "transformers":
        cache = BATCH_SIZE * answered * model.kv_token
    elif on_gpu:
        cache = max_model_len * model.kv_token  # one sequence: what vLLM refuses to start below
    else:
        cache = max(CPU_KV_CACHE_BYTES, 2 * max_model_len * model.kv_token)  # as its worker asks for
    sampling = process + model.weights + cache
    staying = 0 if on_gpu else process + model.weights if engine == "vllm" else model.weights
    training_state = ADAPTER_STATE_BYTES * model.adapter + activation_bytes(
        model, trained, checkpoints=on_gpu
    )
    gate_state = 4 * model.largest + 2 * 4 * gate.LOGITS_AT_ONCE  # logits and their log-softmax, float32
    return {
        "sampling": sampling,
        "training": staying + process + model.weights + training_state,
        "merge gate": staying + process + model.weights + gate_state,
    }


def activation_bytes(model: Sizes, tokens: int, *, checkpoints: bool) -> int:
    """A rough estimate of what a forward pass keeps for the backward pass.

    tokens x (inputs + outputs of all linear layers) x bytes of a number x `ACTIVATION_FACTOR`; with
    checkpoints, which a GPU takes, that of one layer and the hidden state between all of them. Not in it:
    attention matrices (kept only by models without fused attention), and experts.
    """
    kept = ACTIVATION_FACTOR * model.features
    if checkpoints:
        kept = PLAIN_FACTOR * model.features / model.layers + model.layers * model.hidden
    return int(tokens * model.item * kept)


def available_memory(meminfo: Path) -> int:
    """Bytes that new work can take without swapping, by the kernel's own estimate."""
    for line in meminfo.read_text(encoding="utf-8").splitlines() if meminfo.exists() else []:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise SsdLoopError(f"{meminfo} does not say how much memory is available; look yourself")


def judge_memory(needs: Sequence[Need]) -> Finding:
    """Whether every step fits where it runs."""
    worst = max(needs, key=lambda need: need.bytes / max(need.room, 1))
    parts = [f"{need.step} {gib(need.bytes)}" for need in needs]
    rooms = {need.place: need.room for need in needs}
    free = ", ".join(f"{gib(room)} of {place}" for place, room in rooms.items())
    detail = f"about {', '.join(parts)}; free: {free}"
    verdict = _verdict(worst.bytes, worst.room, MEMORY_WARNS)
    if verdict == "pass":
        return Finding("memory", "pass", detail)
    excess = "does not fit" if verdict == "fail" else f"takes over {MEMORY_WARNS:.0%} of what is free"
    return Finding("memory", verdict, f"{detail}; {worst.step} {excess}", worst.remedy)


def check_disk(subject: Subject) -> Finding:
    """What the whole run will write, against what is free where it will lie."""
    needs = {Path(folder): needed for folder, needed in disk_bytes(subject).items()}
    rooms: dict[int, tuple[list[str], int, int]] = {}  # by file system: folders, bytes needed, bytes free
    for folder, needed in needs.items():
        place = _existing(folder.absolute())
        names, sum_so_far, _ = rooms.get(place.stat().st_dev, ([], 0, 0))
        free = shutil.disk_usage(place).free
        rooms[place.stat().st_dev] = ([*names, f"{folder}/"], sum_so_far + needed, free)
    return judge_disk([Need(" and ".join(names), n, "disk", free, "") for names, n, free in rooms.values()])


def _existing(folder: Path) -> Path:
    """The nearest folder above that is there already."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def require_disk(subject: Subject, place: Place) -> None:
    """Stop before weights are written that will not fit.

    Samples are left out: how long they get is not known, and a run that fills the disk with them goes on
    once there is room.

    Raises:
        SsdLoopError: what is still to be written below ``checkpoints/`` is more than is free there.
    """
    files = (file for file in place.weights.rglob("*") if file.is_file() and not file.is_symlink())
    there = sum(file.stat().st_size for file in files if file.name != ROWS)
    needed = max(0, weight_bytes(subject) - there)
    free = shutil.disk_usage(_existing(place.weights.absolute())).free
    if needed > free:
        raise SsdLoopError(
            f"run {place.run} will write about {gib(needed)} more below {place.weights}, and {gib(free)} are "
            "free there; make room, or lower merge.keep_last or rounds"
        )


def disk_bytes(subject: Subject) -> dict[str, int]:
    """Bytes at most below ``checkpoints/`` and ``rounds/``."""
    parts = (sample_tokens, repeated_tokens, baseline_tokens)
    tokens = sum(part(subject.config, subject) for part in parts)
    return {
        CHECKPOINTS: weight_bytes(subject) + row_bytes(subject.config, subject),
        ROUNDS: tokens * SAMPLE_TOKEN_BYTES,
    }


def weight_bytes(subject: Subject) -> int:
    """Bytes at most below ``checkpoints/``, the saved states of a training included."""
    states = STATE_ADAPTERS * subject.sizes.adapter * ADAPTER_FILE_BYTES
    return checkpoint_bytes(subject.config, subject.sizes) + states


def checkpoint_bytes(config: RunConfig, model: Sizes) -> int:
    """Adapters of all rounds, and the merged models that exist at once: kept, the best, and the next."""
    merged = min(config.rounds, config.merge.keep_last + 2)
    return config.rounds * model.adapter * ADAPTER_FILE_BYTES + merged * model.weights


def sample_tokens(config: RunConfig, subject: Subject) -> int:
    """Tokens of all samples at most: each as long as its panel's longest prompt and answer. Rough."""
    drawn, measured = _round_tokens(config, subject)
    return config.rounds * drawn + (config.rounds + config.evaluate.baseline_multiplier) * measured


def repeated_tokens(config: RunConfig, subject: Subject) -> int:
    """Tokens at most of the samples that are kept, which are written once more, and of second looks."""
    drawn, measured = _round_tokens(config, subject)
    return config.rounds * (drawn + config.monitor.second_look * measured)


def row_bytes(config: RunConfig, subject: Subject) -> int:
    """Bytes at most of the rows that a training maps from a file, while it lasts."""
    drawn, _ = _round_tokens(config, subject)
    return ROW_TOKEN_BYTES * drawn * (config.rounds if config.train.data_policy == "accumulate" else 1)


def _round_tokens(config: RunConfig, subject: Subject) -> tuple[int, int]:
    """Tokens of the training samples and of the measured answers of one round; 0 where that is unknown."""
    long = _longest_tokens(subject)
    if not long:
        return 0, 0
    problems = subject.tasks.problems
    drawn = len(problems["train"]) * config.sample.samples_per_prompt * long["train"]
    measured = sum(
        len(problems[name]) * config.evaluate.counts[name] * long[name] for name in config.evaluate.panels
    )
    return drawn, measured


def _longest_tokens(subject: Subject) -> dict[str, int]:
    """Tokens of the longest prompt and answer by panel; empty where the prompts cannot be had."""
    return {row.panel: row.prompt + row.new for row in subject.known_lengths}


def baseline_tokens(config: RunConfig, subject: Subject) -> int:
    """Tokens of the sweeps and finals of base and best round at most, as `sample_tokens` counts.

    A final has three arms, and the base's a second draw and a revision besides, whose prompt holds an answer.
    """
    evaluate, baselines = config.evaluate, config.baselines
    long = _longest_tokens(subject)
    if not long or not config.has_baselines:
        return 0
    points = len(sweeping.grid(baselines, config.sample, evaluate))
    held_out = len(subject.tasks.problems[sweeping.PANEL])
    swept = points * held_out * baselines.samples_per_problem * long[sweeping.PANEL]
    untouched = len(evaluation.panel_problems(evaluate, finals.PANEL))
    answers = untouched * evaluate.counts[finals.PANEL] * evaluate.baseline_multiplier
    measured = answers * ((3 + 3 + 2) * long[finals.PANEL] + evaluate.max_new_tokens)
    return 2 * swept + measured


def judge_disk(needs: Sequence[Need]) -> Finding:
    """Whether all that will be written fits, file system by file system."""
    worst = max(needs, key=lambda need: need.bytes / max(need.room, 1))
    detail = ", ".join(f"{need.step} at most {gib(need.bytes)} of {gib(need.room)} free" for need in needs)
    remedy = "make room, or lower merge.keep_last or rounds"
    verdict = _verdict(worst.bytes, worst.room, DISK_WARNS)
    return Finding("disk", verdict, detail, "" if verdict == "pass" else remedy)


def _verdict(needed: int, free: int, warns: float) -> Verdict:
    """Fail if more is needed than there is, warn above a share of it."""
    return "fail" if needed > free else "warn" if needed > warns * free else "pass"
