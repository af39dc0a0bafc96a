"""`decide RUN`: the decision rule over a finished run again, with other margins or error rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ssd_loop import monitoring, store
from ssd_loop.config import RunConfig
from ssd_loop.config_file import load
from ssd_loop.errors import BadArtifactError, ConfigError
from ssd_loop.monitors.decision import Decision, read_decision
from ssd_loop.place import SEEDS, Place, existing

LEAKS = ("panel_overlap", "canaries")  # not searched again: their texts need the run's data


@dataclass(frozen=True)
class Replayed:
    """One round's decision as it was made and as the rule makes it now."""

    recorded: Decision
    now: Decision
    missing_look: tuple[str, ...]  # panels that the rule would now look at again and that were not


def replay(root: Path, name: str, changed: Mapping[str, Any]) -> Iterator[Replayed]:
    """Every decided round of a run, in order.

    Args:
        root: Folder that holds ``rounds/``.
        name: The run.
        changed: Settings of the section `monitor` that take the place of the run's own.

    Raises:
        ConfigError: no such run, or one without a decision.
        BadArtifactError: a file was altered.
    """
    place, about = existing(root, name)
    own = about["config"]
    config = load(None, {"monitor": _merged(own["monitor"], changed)}, own)
    rounds = [n for n in place.known_rounds() if n and store.finished(place.stage(n, "monitor"))]
    if not rounds:
        raise ConfigError(f"run {name} has no decision yet; run it for a round first")
    if not store.finished(place.stage(0, "evaluate")):
        raise BadArtifactError(
            f"{place.stage(0, 'evaluate')} is missing, and rounds are held against it; restore it"
        )
    earlier: list[Decision] = []
    for n in rounds:
        found = _again(place, config, n, rounds[0], earlier)
        earlier.append(found.now)
        yield found


def _merged(own: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """The changes, with margins that are not named kept."""
    margins = {**own.get("margins", {}), **changed.get("margins", {})}
    return {**changed, "margins": margins}


def _again(place: Place, config: RunConfig, n: int, first: int, earlier: Sequence[Decision]) -> Replayed:
    done = store.finished(place.stage(n, "monitor"))
    assert done is not None
    recorded = read_decision(store.checked(done))
    if not store.finished(place.stage(n, "evaluate")):  # discarded by the probe inside training
        return Replayed(recorded, recorded, ())
    stages = {r: store.finished(place.stage(r, "evaluate")) for r in place.known_rounds() if r <= n}
    seeds = [store.finished(place.stage(first, stage)) for stage in SEEDS]
    merged, second = (store.finished(place.stage(n, stage)) for stage in ("merge", "second_look"))
    folders = monitoring.Folders(
        round=n,
        evaluations={r: store.checked(stage) for r, stage in stages.items() if stage},
        second=store.checked(second) if second else None,
        merge=merged.manifest.metrics if merged else {},
        seeds=tuple(store.checked(again) for again in seeds if again),
        first=first,
    )
    found = {name: recorded.monitors[name] for name in LEAKS if name in recorded.monitors}
    leaked = {
        name: [(reading.reason or "").partition("such as ")[2]] * int(reading.value or 0)
        for name, reading in found.items()
    }
    now = monitoring.decide(folders, config, leaked, earlier)
    asked = () if second else monitoring.asks_again(folders, config)
    return Replayed(recorded, now, asked)


def show(found: Sequence[Replayed], console: Console) -> None:
    """Print the decisions side by side, and where the first one differs."""
    table = Table(title="The rule over this run again", title_justify="left")
    for heading in ("round", "then", "now", "reason now"):
        table.add_column(heading, justify="right" if heading == "round" else "left", overflow="fold")
    for one in found:
        table.add_row(str(one.now.round), _verdict(one.recorded), _verdict(one.now), one.now.reason)
    console.print(table)
    for one in found:
        if one.missing_look:
            console.print(
                f"round {one.now.round}: the rule would now look again at {', '.join(one.missing_look)}, "
                "whose further samples were never drawn; its first look decides here",
                markup=False,
            )


def _verdict(decision: Decision) -> str:
    return decision.verdict if decision.kind == "none" else f"{decision.verdict} ({decision.kind})"
