"""Settings: what is refused, how it is said, and that each setting is documented and used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import ssd_loop
from ssd_loop.config import DataConfig, EvaluateConfig, RunConfig, SampleConfig, Section, affects_result
from ssd_loop.config_file import differences, load, read_yaml
from ssd_loop.errors import ConfigError

PACKAGE = Path(ssd_loop.__file__).parent
CONFIGS = PACKAGE.parent / "configs"
HEAVY = ("torch", "transformers", "vllm")
SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in RunConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
SETTINGS = [(section, name) for section, model in SECTIONS.items() for name in model.model_fields]


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path | None, flags: dict[str, Any] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, flags or {})
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_loads_and_opens_with_its_command(path: Path) -> None:
    load(path, {})
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("#")
    assert "python -m ssd_loop" in first
    assert path.stem == "default" or f"--config configs/{path.name}" in first


def test_without_a_file_the_defaults_hold() -> None:
    assert load(None, {}) == RunConfig()


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load(written(tmp_path, "# nothing yet\n"), {}) == RunConfig()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("samples:\n  temperature: 1\n", ["unknown setting samples", "mine.yaml"]),
        ("sample:\n  temprature: 1\n", ["unknown setting sample.temprature", "mine.yaml"]),
        ("sample:\n  temperature: hot\n", ["sample.temperature", "'hot'", "mine.yaml", "number"]),
        ("sample:\n  temperature: 0\n", ["sample.temperature", "= 0 ", "mine.yaml", "greater than 0"]),
        ("sample:\n  top_p: 1.5\n", ["sample.top_p", "1.5", "less than or equal to 1"]),
        ("sample:\n  top_k: -1\n", ["sample.top_k", "-1"]),
        ("sample:\n  top_k: 2.5\n", ["sample.top_k", "2.5"]),
        ("sample: 3\n", ["sample", "3", "mine.yaml"]),
        ("rounds: 0\n", ["rounds", "0"]),
        ("rounds: 1001\n", ["rounds", "1001"]),
        ("filter:\n  filters: [raw, shiny]\n", ["filter.filters", "shiny", "duplicate"]),
        ("filter:\n  surprise_low: 0.9\n  surprise_high: 0.1\n", ["surprise_low must be below"]),
        ("train:\n  batch_size: 8\n  micro_batch_size: 3\n", ["micro_batch_size must divide batch_size"]),
        ("evaluate:\n  panels: [probe]\n", ["heldout"]),
        ("evaluate:\n  panels: [heldout, heldout]\n", ["twice"]),
        ("evaluate:\n  pass_at: [9]\n", ["pass_at", "between 1 and"]),
        ("evaluate:\n  samples_per_problem: {heldout: 0}\n", ["samples_per_problem"]),
        ("engine:\n  name: megatron\n", ["engine.name", "megatron", "transformers"]),
    ],
)
def test_a_bad_setting_in_the_file_names_itself_and_the_file(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    message = refusal(written(tmp_path, text))
    for part in parts:
        assert part in message
    assert "\n" not in message
    assert len(message) <= 400


@pytest.mark.parametrize(
    "text", ["sample:\n  seed: 1\n  seed: 2\n", "sample:\n  seed: 1\nrounds: 2\nsample:\n  top_k: 3\n"]
)
def test_a_key_given_twice_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    message = refusal(written(tmp_path, text))
    assert "twice" in message
    assert re.search(r"line \d", message)
    assert "mine.yaml" in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- a\n- b\n", "list"),
        ("just words\n", "str"),
        ("sample: [1, 2\n", "line"),
        ("sample:\n\ttop_k: 1\n", "line 2"),
        ("a: &x [*x]\n", "mine.yaml"),
        ("!!python/object/apply:os.getcwd []\n", "mine.yaml"),
        ("[1, 2]: 3\n", "mine.yaml"),
    ],
)
def test_a_file_that_is_not_settings_is_refused(tmp_path: Path, text: str, part: str) -> None:
    message = refusal(written(tmp_path, text))
    assert part in message
    assert "mine.yaml" in message


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    assert "nowhere.yaml" in refusal(tmp_path / "nowhere.yaml")
    assert str(tmp_path) in refusal(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refusal(binary)


def test_a_flag_wins_over_the_file_and_leaves_the_rest(tmp_path: Path) -> None:
    path = written(tmp_path, "rounds: 3\nsample:\n  temperature: 1.6\n  top_k: 5\n")
    config = load(path, {"rounds": 7, "sample": {"temperature": 0.5}})
    assert (config.rounds, config.sample.temperature, config.sample.top_k) == (7, 0.5, 5)
    assert config.sample.top_p == SampleConfig().top_p


def test_the_message_names_the_flag_or_the_file_that_is_at_fault(tmp_path: Path) -> None:
    path = written(tmp_path, "sample:\n  top_k: -5\n")
    by_flag = refusal(path, {"sample": {"top_k": "-7"}})
    assert "flag --sample.top_k" in by_flag
    assert "'-7'" in by_flag
    by_file = refusal(path, {"sample": {"temperature": "1.0"}})
    assert str(path) in by_file
    assert "flag" not in by_file.partition(";")[0]


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(refusal(None, {"sample": {"top_k": "9" * 1000 + "x"}})) <= 400


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        RunConfig().sample.temperature = 2.0  # type: ignore[misc]


def test_one_number_of_samples_holds_for_every_panel_and_a_mapping_for_some() -> None:
    assert set(EvaluateConfig(samples_per_problem=3).counts.values()) == {3}
    some = EvaluateConfig(samples_per_problem={"heldout": 9}).counts
    assert some["heldout"] == 9
    assert {panel: n for panel, n in some.items() if panel != "heldout"} == {
        panel: n for panel, n in EvaluateConfig().counts.items() if panel != "heldout"
    }


def test_the_resolved_config_loads_back_to_itself() -> None:
    config = load(None, {"evaluate": {"samples_per_problem": 2}, "filter": {"filters": ["empty", "stub"]}})
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_differences_name_changed_results_and_ignore_speed() -> None:
    old = RunConfig().model_dump(mode="json")
    assert differences(old, RunConfig().model_dump(mode="json")) == []
    changed = load(
        None,
        {
            "rounds": 99,
            "sample": {"temperature": 1.6},
            "train": {"micro_batch_size": 2},
            "track": {"mode": "offline"},
        },
    )
    assert differences(old, changed.model_dump(mode="json")) == ["sample.temperature: 1.0 -> 1.6"]


def test_result_settings_leave_out_speed() -> None:
    settings = RunConfig().train.result_settings()
    assert "micro_batch_size" not in settings
    assert settings["learning_rate"] == 2e-5


@pytest.mark.parametrize(("section", "name"), SETTINGS, ids=lambda value: value)
def test_every_setting_is_described(section: str, name: str) -> None:
    description = SECTIONS[section].model_fields[name].description
    assert description
    assert description.endswith(".")


def test_every_section_says_what_it_is_for() -> None:
    assert all(model.__doc__ for model in SECTIONS.values())


def test_there_are_not_too_many_settings() -> None:
    assert len(SETTINGS) <= 85  # docs/decisions/0013


def test_only_named_settings_are_speed_only() -> None:
    """A setting that slips in here would let two different results share a fingerprint."""
    found = {f"{s}.{n}" for s, n in SETTINGS if not affects_result(SECTIONS[s].model_fields[n])}
    allowed = {
        "train.micro_batch_size",
        "sandbox.workers",
        "monitor.action",
        "track.mode",
        "track.project",
        "track.price_per_device_hour",
        "engine.device",
        "engine.gpu_memory_utilization",
        "engine.max_model_len",
        # Known by content, which is an input of every stage that reads it.
        "model.name",
        "model.revision",
        *(f"prompts.{name}" for name in DataConfig.model_fields if name != "limit"),
        "evaluate.sources",
        "merge.keep_last",
    }
    assert found <= allowed


def attributes_read() -> set[str]:
    """Attribute names that the package reads, validators of the settings themselves left out."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.name == "config.py":
            tree.body = [_without_validators(node) for node in tree.body]
        found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return found


def _without_validators(node: ast.stmt) -> ast.stmt:
    if isinstance(node, ast.ClassDef):
        node.body = [
            child
            for child in node.body
            if not (
                isinstance(child, ast.FunctionDef)
                and any("validator" in ast.unparse(mark) for mark in child.decorator_list)
            )
        ]
    return node


def test_every_setting_is_read_somewhere() -> None:
    read = attributes_read()
    assert [f"{section}.{name}" for section, name in SETTINGS if name not in read] == []


def test_importing_the_config_is_light() -> None:
    code = f"import sys, ssd_loop.config; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_is_light(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "ssd_loop", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "ssd_loop" in imported  # the listing is there at all
    assert imported.isdisjoint(HEAVY)


def test_read_yaml_keeps_what_is_written(tmp_path: Path) -> None:
    path = written(tmp_path, "rounds: 2\nsample:\n  temperature: 1.6\n")
    assert read_yaml(path) == {"rounds": 2, "sample": {"temperature": 1.6}}


def test_the_default_recipe_is_the_defaults() -> None:
    assert load(CONFIGS / "default.yaml", {}) == RunConfig()
