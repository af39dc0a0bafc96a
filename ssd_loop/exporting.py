"""A round handed on: the merged model, or all its adapters as one adapter for the base, with a model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssd_loop import checkpoints, composition, durable, lora, merging, models, store
from ssd_loop.checkpoints import Origin
from ssd_loop.config_file import differences, load
from ssd_loop.errors import BadArtifactError, ConfigError
from ssd_loop.figures import CHOSEN, Difference, headline, points, read_report, rival
from ssd_loop.lora import Term
from ssd_loop.monitors.decision import read_decision
from ssd_loop.place import Place
from ssd_loop.report import facts
from ssd_loop.store import Finished
from ssd_loop.training import ADAPTER_CONFIG, WEIGHTS
from ssd_loop.weights import Terms, checked_terms

CARD = "README.md"
CARD_SEAL = "ssd_loop: sha256 of this card and its weights:"


def export_merged(origin: Origin, out: Path, base_name: str | None) -> None:
    """Write a round's merged model to the new folder `out`; rebuilt from its adapters where it was pruned.

    Args:
        origin: The round.
        out: A folder that does not exist yet.
        base_name: Where the base is, if not where the run had it.

    Raises:
        ConfigError: `out` exists, or the base is another model.
        BadArtifactError: a file was altered, or what is rebuilt is not what was recorded.
    """
    terms = _terms(origin)
    merged = store.finished(origin.place.stage(origin.round, "merge"))
    with _new_folder(out) as folder:
        if merged and not store.pruned(merged):
            source = store.checked(merged)
            for name in merged.manifest.outputs:
                shutil.copyfile(source / name, folder / name)
        else:
            base = _base(origin, base_name)
            merging.merge(origin.content.rounding, base_dir=base, terms=checked_terms(terms), out=folder)
            for name, recorded in (merged.manifest.outputs if merged else {}).items():
                if durable.sha256_file(folder / name) != recorded["sha256"]:
                    raise BadArtifactError(
                        f"{name} was rebuilt and differs from its recorded hash: another machine or library "
                        f"version; fork {origin.name} under a new --run to use weights built here"
                    )
        (folder / CARD).write_text(card(origin, adapter=False), encoding="utf-8")


def write_card(place: Place, n: int) -> None:
    """Put a model card beside a round's merged weights, if they are there; the same facts, the same bytes.

    No manifest names it: what is known of a round grows after its merge. So it ends with a hash of its own.
    """
    folder = place.stage(n, "merge")
    merged = store.finished(folder)
    if not n or merged is None:
        return
    text = sealed(card(Origin(place, n, composition.read(place.checkpoint(n))), adapter=False), merged)
    path = folder / CARD
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        durable.write_bytes(path, text.encode())


def sealed(text: str, merged: Finished) -> str:
    """A card that ends with the hash of its text and of the weights that it describes."""
    digest = durable.sha256_json([merged.manifest_sha256, text])
    return f"{text}\n<!-- {CARD_SEAL} {digest} -->\n"


def is_whole(path: Path, merged: Finished) -> bool:
    """Whether a card is as it was written, beside these weights."""
    try:
        written = path.read_bytes().decode()
    except UnicodeDecodeError:
        return False
    text, seal, _ = written.rpartition(f"\n<!-- {CARD_SEAL} ")
    return bool(seal) and sealed(text, merged) == written


def export_adapter(origin: Origin, out: Path) -> None:
    """Write all adapters of a round as one adapter for its base to the new folder `out`, in PEFT's format.

    The adapters are joined by rank, which is exact: one adapter of rank r1 + r2 adds B1 A1 + B2 A2.

    Args:
        origin: The round.
        out: A folder that does not exist yet.

    Raises:
        ConfigError: `out` exists, or the round is the base itself.
        BadArtifactError: an adapter is missing or was altered.
    """
    terms = checked_terms(_terms(origin))
    if not terms:
        raise ConfigError(f"{origin.name} is the base itself and has no adapter; export it without --adapter")
    with _new_folder(out) as folder:
        write_joined(terms, folder)
        (folder / CARD).write_text(card(origin, adapter=True), encoding="utf-8")


def write_joined(terms: Sequence[Term], folder: Path) -> None:
    """Write one adapter that adds what all `terms` add; ranks that differ are filled up with zeros."""
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    with lora.opened(terms, None) as parts:
        pairs = {name: lora.stacked(factors) for name, factors in parts.items()}
    rank = max(a.shape[0] for a, _ in pairs.values())
    for name, (a, b) in pairs.items():
        missing = rank - a.shape[0]
        module = f"{lora.PREFIX}{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = torch.nn.functional.pad(a, (0, 0, 0, missing))
        tensors[f"{module}.lora_B.weight"] = torch.nn.functional.pad(b, (0, missing))
    plain = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
    with durable.disk_errors(folder / WEIGHTS):
        save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})
    settings = lora.plain_settings(terms[-1].folder)
    modules = sorted({name.removesuffix(".weight").rpartition(".")[2] for name in pairs})
    # alpha = rank makes the scale 1: every round's own scale is in B already.
    changed = {"r": rank, "lora_alpha": rank, "alpha_pattern": {}, "target_modules": modules}
    text = json.dumps(settings | changed, indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


def card(origin: Origin, *, adapter: bool) -> str:
    """The model card: what this is, how it was made, what was measured, how to load it."""
    base, n = origin.content.base, origin.round
    named = base.name or base.title
    what = "LoRA adapter" if adapter else "model"
    front = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": base.name} if base.name and "/" in base.name else {}),
        "tags": ["simple-self-distillation", "ssd_loop"],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""]
    lines += [
        *(_made(origin, named, what) if n else _untouched(origin, named)),
        *_results(origin),
        *_bought(origin),
        "## Loading",
        "",
        "```python",
        *_loading(named, adapter=adapter),
        "```",
        "",
    ]
    if adapter:
        lines += ["It belongs on the base alone. vLLM needs `max_lora_rank` of at least its rank.", ""]
    return "\n".join(lines)


def _made(origin: Origin, named: str, what: str) -> list[str]:
    """Title and making of a round's weights."""
    base, n = origin.content.base, origin.round
    config = load(None, {}, origin.content.settings)
    rounds = f"{n} round" if n == 1 else f"{n} rounds in a row"
    judge = (
        "its prompts' tests as the only judge"
        if "fails_tests" in config.filter.filters
        else "without a teacher, a verifier or a reward"
    )
    return [
        f"# {named} after {rounds.removesuffix(' in a row')} of simple self-distillation",
        "",
        f"This {what} is {base.title} fine-tuned on its own samples, {judge} "
        f"([arXiv 2604.01193](https://arxiv.org/abs/2604.01193)), for {rounds}. Made with `ssd_loop`.",
        "",
        "## How it was made",
        "",
        f"- sampling: temperature {config.sample.temperature}, top-k {config.sample.top_k}, top-p "
        f"{config.sample.top_p}, at most {config.sample.max_new_tokens} tokens, "
        f"{config.sample.samples_per_prompt} per prompt, by the {config.sample.policy} weights",
        f"- filters: {', '.join(config.filter.filters)}",
        f"- training: LoRA rank {config.train.lora_rank}, learning rate {config.train.learning_rate:g}, "
        f"{config.train.epochs} epoch(s), batches of {config.train.batch_size}, started from the "
        f"{config.train.start_from} weights, data {config.train.data_policy}, "
        f"{config.train.human_share:.0%} human-written",
        *_other_rounds(origin),
        _base_line(origin),
        f"- weights: base + the sum of {len(origin.content.adapters)} adapters, rounded "
        f"{origin.content.rounding}",
        "",
        *_adapter_table(origin),
    ]


def _untouched(origin: Origin, named: str) -> list[str]:
    """Title of round 0, which is a run's best one where no round surely beat it."""
    return [
        f"# {named}, the base of a self-distillation run",
        "",
        f"This is {origin.content.base.title} as it was before the first round of an `ssd_loop` run: trained "
        "on nothing.",
        "",
        _base_line(origin),
        "",
    ]


def _base_line(origin: Origin) -> str:
    base = origin.content.base
    return f"- base: {base.title}, {base.dtype}, content hash `{base.content_hash}`"


def _other_rounds(origin: Origin) -> list[str]:
    """Earlier rounds that were made with other settings: a run may start from a round of another run."""
    now = load(None, {}, origin.content.settings).model_dump(mode="json")
    lines = []
    for n in range(1, origin.round):
        folder = origin.place.checkpoint(n)
        if (folder / composition.COMPOSITION).is_file():
            old = load(None, {}, composition.read(folder).settings).model_dump(mode="json")
            if changed := differences(now, old):
                lines.append(f"- round {n} was made with other settings: {'; '.join(changed)}")
    return lines


def _adapter_table(origin: Origin) -> list[str]:
    rows = [f"| `{part.path}` | {part.weight:g} | `{part.sha256}` |" for part in origin.content.adapters]
    return ["| adapter | weight | SHA-256 |", "|---|---|---|", *rows, ""] if rows else []


def _results(origin: Origin) -> list[str]:
    """Headline numbers of round 0 and of this round, if the run's reports are there."""
    reports = {}
    for n in dict.fromkeys((0, origin.round)):
        if done := store.finished(origin.place.stage(n, "evaluate")):
            reports[n] = headline(read_report(store.checked(done)))
    if not reports:
        return []
    names = [name for name in next(iter(reports.values())) if not name.endswith("_se") and name != "tokens"]
    head = "| | " + " | ".join(f"round {n}" for n in reports) + " |"
    rows = [
        f"| {name} | " + " | ".join(_cell(report, name) for report in reports.values()) + " |"
        for name in names
    ]
    return [
        "## Measured",
        "",
        "± is one standard error over problems; differences within it are noise.",
        "",
        head,
        "|---" * (len(reports) + 1) + "|",
        *rows,
        "",
    ]


def _bought(origin: Origin) -> list[str]:
    """Where the gain is, what is left of it against the base's best decoding, and what the monitors said."""
    place, n = origin.place, origin.round
    lines = []
    if gained := facts.gains_of(place, n):
        lines.append(f"- against round 0, paired by problem, 95 % intervals: {gained['verdict']}; {CHOSEN}")
    if final := facts.final_of(place, n):
        for name, difference in final["compared"].items():
            lines.append(
                f"- on {final['panel']}, which nothing was tuned on, against {rival(name)}: "
                f"{points(Difference(**difference))} points of pass@1"
            )
    if done := store.finished(place.stage(n, "monitor")):
        decision = read_decision(store.checked(done))
        lines.append(f"- monitors: {decision.verdict}; {decision.reason}")
    return ["## What it bought", "", *lines, ""] if lines else []


def _cell(report: dict[str, Any], name: str) -> str:
    if name not in report:
        return "-"
    error = report.get(f"{name}_se")
    return f"{report[name]:.4g}" + (f" ± {error:.2g}" if error is not None else "")


def _loading(base: str, *, adapter: bool) -> list[str]:
    if not adapter:
        return [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("PATH", dtype="auto")',
            'tokenizer = AutoTokenizer.from_pretrained("PATH")',
        ]
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")',
        'model = PeftModel.from_pretrained(base, "PATH")',
    ]


def _terms(origin: Origin) -> Terms:
    folder = origin.place.checkpoint(origin.round)
    return tuple(composition.adapters_of(folder, origin.content))


def _base(origin: Origin, name: str | None) -> Path:
    config = load(None, {}, checkpoints.settings_of(origin))
    if name is None and origin.content.base.name is None and origin.place.about() is None:
        raise ConfigError(
            f"the base of {origin.name} was a folder ({origin.content.base.title}); name it with --base"
        )
    wanted = name or config.model.name
    base = models.resolve(wanted, config.model.revision, config.model.dtype)
    checkpoints.check_base(origin, models.content_hash(base.path), wanted, flag="--base")
    return base.path


def _new_folder(out: Path) -> Any:
    if out.exists():
        raise ConfigError(f"{out} exists already; name a new folder with --out")
    return store.whole_folder(out)
