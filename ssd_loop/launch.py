"""Opens what a command needs, hands it to the loop or to one evaluation, and closes it again."""

from __future__ import annotations

import json
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssd_loop import (
    baselines,
    checkpoints,
    composition,
    controller,
    durable,
    engines,
    evaluation,
    exporting,
    finals,
    judging,
    measuring,
    memory,
    models,
    monitoring,
    progress,
    provenance,
    sandbox,
    store,
    sweeping,
    tracking,
    weights,
)
from ssd_loop.checkpoints import Origin
from ssd_loop.config import RunConfig
from ssd_loop.config_file import differences
from ssd_loop.doctor import room
from ssd_loop.errors import ConfigError, StaleOutputError
from ssd_loop.figures import headline, read_report, signal_lines
from ssd_loop.place import RUN_FILE, RUN_NAME, Place
from ssd_loop.problems import Problem
from ssd_loop.prompts import content_input, load_prompts
from ssd_loop.report import outcome, status
from ssd_loop.running import Begins, Run
from ssd_loop.store import Input
from ssd_loop.workbench import Workbench

FINISHED, STOPPED = 0, 3


def launch(
    name: str,
    config: RunConfig,
    origin: Origin | None = None,
    *,
    resumed_from: str | None = None,
    goes_past_stops: bool = False,
) -> int:
    """Run or continue a run; its exit code.

    Args:
        name: The run.
        config: Its settings.
        origin: The round that it starts from; None for the base model.
        resumed_from: How the user named that round.
        goes_past_stops: Whether it goes on where the monitors say stop.

    Raises:
        ConfigError: the name, the prompts or the settings cannot be used; nothing was written.
        StaleOutputError: the run exists with other settings or another origin.
    """
    if not RUN_NAME.fullmatch(name):
        raise ConfigError(
            f"run name {name!r} cannot be used; take letters, digits, '.', '_' and '-', at most 64, and "
            "start with a letter or digit (--run)"
        )
    mode = tracking.resolve_mode(config.track)
    prompts = load_prompts(config.prompts)
    if config.train.human_share and not any(prompt.solution for prompt in prompts):
        raise ConfigError(
            f"train.human_share is {config.train.human_share}, but no prompt has a human-written solution; "
            "name their column in prompts.columns as solution"
        )
    judging.check_prompts(config.filter.filters, prompts)
    data = _data(config, prompts)  # a panel that is not installed is known now
    if config.baselines.temperatures:
        _check_untouched(config)
    _check_disjoint(config, prompts)
    engine = engines.engine_name(config.engine)
    place = Place(Path(), name)
    with store.run_lock(place.folder):
        about = place.about()
        if about is not None:
            _check_same(about, origin, place, config, data, engine)
        start, begins = _start(about, origin, place)
        _check_rounds(config.rounds, start, is_new=about is None and origin is not None)
        base = models.resolve(config.model.name, config.model.revision, config.model.dtype)
        base_hash = models.content_hash(base.path)
        models.check_opens(base.path, config.model.name)
        engines.check_context(base.path, config.engine.max_model_len)
        models.stop_token_ids(base.path)
        models.check_vocabulary(base.path)
        engines.check_device(config.engine)
        bench = Workbench(config, base)
        _check_prompts_fit(config, bench)
        store.check_writable(place.weights)
        if config.baselines.temperatures:
            finals.check_template(bench.renderer)
        judging.require_sandbox(config.sandbox)
        if origin is not None:
            checkpoints.check_base(origin, base_hash, config.model.name)
        if config.train.data_policy != "replace":
            checkpoints.check_kept(place if about or origin is None else origin.place, start)
        if about is None:
            about = _describe(config, bench, base_hash, data)
            if origin is not None:
                about |= _take_over(origin, place, config, data, engine) | {"resumed_from": resumed_from}
            durable.write_sealed(place.folder / RUN_FILE, about)
        _warn_of_changes(about)
        tracker = tracking.Tracker(mode, config, name, about["tracking_id"], place.folder)
        described = composition.describe_base(config, base, base_hash)
        run = Run(place, config, described, prompts, bench, tracker, data, start, begins, goes_past_stops)
        return _drive(run, about)


def _check_prompts_fit(config: RunConfig, bench: Workbench) -> None:
    """Refuse a template that cannot write the prompts, prompts that leave no room, and layers not there."""
    from jinja2 import TemplateError

    subject = bench.subject
    try:
        found = subject.longest
    except (TemplateError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"the chat template of model.name {config.model.name} cannot write a prompt: "
            f"{str(error)[:160].rstrip('.')}; mend chat_template.jinja or leave model.system_prompt unset"
        ) from None
    most = config.engine.max_model_len
    for one in found:
        if one.prompt == 0:
            raise ConfigError(
                f"the chat template of model.name {config.model.name} writes nothing for prompt "
                f"{one.prompt_id[:40]!r}; mend chat_template.jinja"
            )
        if one.prompt + one.new > most:
            raise ConfigError(
                f"prompt {one.prompt_id[:40]!r} of {one.panel} has {one.prompt} tokens, plus {one.new} new "
                f"ones is over engine.max_model_len {most}; raise that, lower max_new_tokens or leave the "
                "prompt out"
            )
    adapted = subject.adapted  # refuses layers that the model lacks
    if not adapted:
        raise ConfigError(f"model.name {config.model.name} has no linear layer to train; use another model")


def _check_disjoint(config: RunConfig, prompts: Sequence[Problem]) -> None:
    """Refuse prompts that share text with a panel: a gain there would mean nothing."""
    found = monitoring.prompt_leaks(config, prompts)
    if not found:
        return
    what = f"{len(found)} prompts share text with a panel, such as {found[0].row} with {found[0].problem}"
    if config.monitor.action == "stop":
        raise ConfigError(
            f"{what} ({found[0].words[:80]!r}); take them out of the prompts or the panel, or set "
            "monitor.action to warn"
        )
    progress.say(f"warning: {what}; gains on that panel mean little")


def _check_untouched(config: RunConfig) -> None:
    """Refuse a report panel that shares text with the problems that rounds and settings are chosen on."""
    found = monitoring.shared_with_report(config)
    if found:
        raise ConfigError(
            f"{len(found)} held-out problems share text with the panel report, such as {found[0].row} with "
            f"{found[0].problem} ({found[0].words[:80]!r}), so no final figure could be trusted; replace one "
            "of them in evaluate.sources, or set baselines.temperatures to []"
        )


def _data(config: RunConfig, prompts: Sequence[Problem]) -> dict[str, str]:
    """Fingerprints of the prompts and of every panel."""
    panels = evaluation.problem_inputs(config.evaluate)
    found = {checkpoints.PROMPTS: content_input(prompts), **panels}
    return {name: source.fingerprint for name, source in found.items()}


def _start(about: Mapping[str, Any] | None, origin: Origin | None, place: Place) -> tuple[int, Begins]:
    """The round that is gone on from, and how it came about.

    Raises:
        ConfigError: a round that was handed over before the run began.
    """
    began = about.get("start", 0) if about else 0
    has_parent = about is not None and "parent" in about
    if origin is None or (about is not None and not origin.is_in(place.root, place.run)):
        return began, "handed over" if has_parent else "base"
    if about is None or (has_parent and origin.round == began):
        return origin.round, "handed over"
    if origin.round < began:
        raise ConfigError(
            f"run {place.run} itself began from round {began}, and {origin.name} is before that; fork it "
            "under a new --run"
        )
    return origin.round, "own round"


def _check_rounds(rounds: int, start: int, *, is_new: bool) -> None:
    """Refuse a total that the rounds before the start exceed, or fill where a new run would do nothing."""
    if rounds < start or (is_new and rounds == start):
        raise ConfigError(
            f"rounds is {rounds}, but there are {start} rounds behind the start already; --rounds is the "
            "total"
        )


def _take_over(
    origin: Origin, place: Place, config: RunConfig, data: Mapping[str, str], engine: str
) -> dict[str, Any]:
    """Copy what a new run needs of the round that it starts from; what run.json says of that."""
    changes = checkpoints.changes(origin, config, data, engine)
    if not origin.is_in(place.root, place.run):
        progress.say(f"copying what {place.run} needs of {origin.name}")
        checkpoints.hand_over(
            origin,
            place,
            accumulates=config.train.data_policy != "replace",
            decodes_alike={"sample", "baselines"}.isdisjoint(line.partition(".")[0] for line in changes),
        )
        for n in range(1, origin.round + 1):
            exporting.write_card(place, n)
    return {"parent": origin.identity(), "start": origin.round, "changes": changes}


def _drive(run: Run, about: Mapping[str, Any]) -> int:
    _announce(run, about)
    finished = False
    memory.settle()
    try:
        if not run.place.stage(run.config.rounds, "monitor").exists():  # else nothing is built on it any more
            room.require_disk(run.bench.subject, run.place)
            weights.check_chain(run)
        stop = controller.run_rounds(run)
        if stop is not None:
            run.tracker.stopped(stop)
        baselines.conclude(run)
        finished = True
        run.tracker.report(reported(run))
    finally:
        run.bench.close()
        run.tracker.close(0 if finished else 1)  # a monitor stop is a result, not a failure
    status.show(status.read(run.place.root, run.place.run), status.console())
    if stop is not None:
        way_on = "" if stop.attribution == "cliff" else "; --continue-past-stop goes on"
        progress.say(f"stopped by the monitors after round {stop.round} ({stop.kind}): {stop.reason}{way_on}")
        return STOPPED
    progress.say(f"run {run.place.run} has finished its {run.config.rounds} rounds")
    return FINISHED


def reported(run: Run) -> Path:
    """Write the run's report; it is read by people alone and can be made again at any time."""
    from ssd_loop.report import account, page

    price = run.config.track.price_per_device_hour  # asked for now; run.json has the one of the first time
    path = page.write(account.gather(run.place.root, run.place.run, price_per_device_hour=price))
    progress.say(f"report: {path}")
    return path


def _check_same(
    about: Mapping[str, Any],
    origin: Origin | None,
    place: Place,
    config: RunConfig,
    data: Mapping[str, str],
    engine: str,
) -> None:
    """Refuse an existing run that began elsewhere or was asked to be something else."""
    if origin is not None and not origin.is_in(place.root, place.run):
        checkpoints.check_origin(about, origin, place.run)
    changed = differences(about["config"], config.model_dump(mode="json"))
    # Baselines decide nothing: they may be turned on or off later, and changed until the first is measured.
    if not config.baselines.temperatures or not any(place.folder.glob("round_*/sweep*")):
        changed = [line for line in changed if not line.startswith("baselines.")]
    if not changed:  # else a setting explains why the tasks are others
        known = about.get("data", {})
        changed = [f"{name}: other tasks" for name in known if data.get(name) != known[name]]
    if engine != about["engine"]:
        changed.append(f"engine: {about['engine']} -> {engine}")
    if changed:
        raise StaleOutputError(
            f"run {place.run} was begun with other settings ({'; '.join(changed)}); go on with the old "
            "ones or choose a new --run"
        )


def _describe(config: RunConfig, bench: Workbench, base_hash: str, data: Mapping[str, str]) -> dict[str, Any]:
    return {
        "data": dict(data),
        "config": config.model_dump(mode="json", exclude={"rounds"}),
        "base_model": {
            "name": config.model.name,
            "title": bench.base.title,
            "dtype": bench.base.dtype,
            "content_hash": base_hash,
        },
        "engine": bench.engine_name,
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
        "hardware": provenance.hardware(),
        "tracking_id": uuid.uuid4().hex[:12],
    }


def _warn_of_changes(about: Mapping[str, Any]) -> None:
    now = provenance.versions()
    changed = [
        f"{name} {was} -> {now.get(name, 'missing')}"
        for name, was in about["versions"].items()
        if now.get(name) != was
    ]
    if changed:
        progress.say(f"warning: versions changed since this run began: {', '.join(changed)}")


def _announce(run: Run, about: Mapping[str, Any]) -> None:
    isolation = sandbox.isolation() if run.config.sandbox.execute else "none: code is not executed"
    progress.say(
        f"run {run.place.run}: {run.bench.base.title}, {run.bench.base.dtype}, engine "
        f"{run.bench.engine_name}, sandbox {isolation}, tracking {run.tracker.mode}"
    )
    for line in status.choices(about, run.config):
        progress.say(line)
    later = range(run.start + 1, run.config.rounds + 1)
    done = [n for n in later if run.place.stage(n, "monitor").exists()]
    if done:
        progress.say(f"finished rounds are used where their inputs still match: {status.spans(done)}")


def evaluate_model(config: RunConfig, *, sweep: bool, out: Path | None, as_json: bool) -> None:
    """Measure one model on the panels and print its report.

    Args:
        config: Settings; `model.name` is the model.
        sweep: Measure it over the grid of decoding settings instead, on the held-out problems.
        out: Folder for samples, results and report, which must not exist yet; None keeps nothing.
        as_json: Print the report as JSON instead of a summary.
    """
    if out is not None and out.exists():
        raise ConfigError(f"--out {out} exists already; name a new folder")
    base = models.resolve(config.model.name, config.model.revision, config.model.dtype)
    models.check_opens(base.path, config.model.name)
    engines.check_device(config.engine)
    judging.require_sandbox(config.sandbox)
    bench = Workbench(config, base)
    try:
        with tempfile.TemporaryDirectory(prefix="ssd_loop-") as scratch:
            source, folder = Input(models.content_hash(base.path)), out or Path(scratch) / "evaluate"
            if sweep:
                report = sweeping.read(measuring.sweep_alone(bench, source, folder).path)
            else:
                report = read_report(measuring.evaluate_alone(bench, source, folder).path)
    finally:
        bench.close()
    if as_json:
        json.dump(report, sys.stdout)
        print()
        return
    print(f"{base.title}, {base.dtype}, engine {bench.engine_name}")
    if sweep:
        outcome.show_sweep(report, status.console())
        return
    for line in signal_lines(report["signal"]) if report["signal"] else ():
        print(f"  {line}")
    for name, value in headline(report).items():
        print(f"  {name}: {value:,.4g}")
