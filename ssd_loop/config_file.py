"""From a YAML file and flags to settings, with mistakes named: the value, where it came from, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from reprlib import Repr
from typing import Any

import yaml
from pydantic import ValidationError

from ssd_loop.config import RunConfig, Section, affects_result
from ssd_loop.errors import ConfigError

# Settings of the section `monitor` that earlier versions had; `margins` and `degenerate_floor` replaced them.
REMOVED = frozenset(
    ("pass_margin", "ood_margin", "nll_margin", "diversity_margin", "truncated_limit", "unparsable_limit")
)


SHOWN = 60  # characters of a name or value in a message
_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = SHOWN


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key written twice instead of keeping the last one."""


def _mapping_without_duplicates(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for index, key in enumerate(keys):
        if key in keys[:index]:
            line = node.value[index][0].start_mark.line + 1
            raise ConfigError(f"key {shown(key)} is given twice (line {line})")
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings written in one YAML file, as nested plain data.

    Raises:
        ConfigError: no such file, not YAML, a key given twice, or not a mapping.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}; check --config") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the config {path} is not UTF-8 text; save it as UTF-8") from None
    except ConfigError as error:
        raise ConfigError(f"{error} in {path}; keep one of them") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply to be settings; write 'section:' lines") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        reason = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{path}{line} is not valid YAML: {reason}; mend that line") from None
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}, not settings; write 'section:' lines")
    return data or {}


def load(path: Path | None, flags: dict[str, Any], inherited: Mapping[str, Any] | None = None) -> RunConfig:
    """The config of a run: the file's settings, replaced by those given as ``--section.name`` flags.

    Args:
        path: YAML file, or None for the defaults alone.
        flags: Nested settings from the command line.
        inherited: Settings of the run that this one goes on from; the file and the flags replace them.

    Raises:
        ConfigError: unknown, mistyped or out-of-range settings, naming the first one.
    """
    data = read_yaml(path) if path else {}
    try:
        return RunConfig.model_validate(_over(_over(_kept(inherited or {}), data), flags))
    except ValidationError as error:
        raise ConfigError(_sentence(error, flags, path)) from None


def _kept(inherited: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an earlier run without those that are gone: none of them decides what its weights are."""
    monitor = {name: value for name, value in inherited.get("monitor", {}).items() if name not in REMOVED}
    return {**inherited, "monitor": monitor} if "monitor" in inherited else dict(inherited)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The settings `below`, with those that `above` gives instead, section by section."""
    merged = dict(below)
    for section, value in above.items():
        old = below.get(section)
        if isinstance(value, dict) and isinstance(old, dict):
            value = {**old, **value}
        merged[section] = value
    return merged


def _sentence(error: ValidationError, flags: dict[str, Any], path: Path | None) -> str:
    errors = error.errors()
    same = [one for one in errors if one["loc"][:2] == errors[0]["loc"][:2]]
    # Of what a value could have been, the one that it was meant to be has words of its own.
    first = next((one for one in same if one["type"] == "value_error"), errors[0])
    reason = first["msg"].removeprefix("Value error, ")
    keys = [str(key) for key in first["loc"]]
    if not keys:
        return f"{reason}; change one of them in {path or 'the flags'}"
    section = flags.get(keys[0]) if keys else None
    by_flag = section is not None and (len(keys) < 2 or not isinstance(section, dict) or keys[1] in section)
    name = ".".join(key[:SHOWN] for key in keys[:2]) or "the config"
    origin = f"flag --{name}" if by_flag or path is None else str(path)
    if first["type"] == "extra_forbidden":
        whole = ".".join(key[:SHOWN] for key in keys[:4])  # evaluate.sources has sections in it
        return f"unknown setting {whole} (from {origin}); --help lists every setting"
    if first["type"] == "model_type":
        reason = "a section holds settings; write them below it, indented, or leave it out"
    return f"{name} = {shown(first['input'])} (from {origin}) is not usable: {reason}; see run --help"


def shown(value: Any) -> str:
    """A value for a message, cut; YAML can name one list so often that it is too large to be written out."""
    try:
        text = _short.repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a very large number"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Result-changing settings that differ, as ``section.name: old -> new``.

    Args:
        old: Resolved config of an existing run, as stored in ``run.json``.
        new: Resolved config asked for now, in the same form.
    """
    changed = []
    defaults = RunConfig().model_dump(mode="json")
    for section, field in RunConfig.model_fields.items():
        model = field.annotation
        if not (isinstance(model, type) and issubclass(model, Section)):
            continue
        for name, setting in model.model_fields.items():
            now = new[section][name]
            # A setting that the old run did not know had its default.
            was = old.get(section, {}).get(name, defaults[section][name])
            if affects_result(setting) and was != now:
                changed.append(f"{section}.{name}: {was} -> {now}")
    return changed
