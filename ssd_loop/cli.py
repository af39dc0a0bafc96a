"""The command line. It reads flags and prints; everything it starts lives elsewhere."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ssd_loop import __version__, interrupts
from ssd_loop.errors import BadArtifactError, ConfigError, SsdLoopError
from ssd_loop.secret import without_secrets

PROGRAM = "python -m ssd_loop"
INTERRUPTED = 130
MESSAGE_LIMIT, ENDING = 400, 160  # characters
MAKE_ROOM = "make room and run the same command, which goes on where this stopped"

JSON_FLAG: dict[str, Any] = {"action": "store_true", "help": "print JSON for scripts"}
CONFIG_FLAG: dict[str, Any] = {"type": Path, "metavar": "FILE", "help": "YAML file with settings"}

DESCRIPTION = f"""\
Repeated simple self-distillation of a code model: each round samples solutions from the model, filters
them, fine-tunes the same model on them through LoRA, merges, measures, and decides whether to go on.

  {PROGRAM} --rounds 5                     five rounds on the packaged 135M model
  {PROGRAM} --rounds 5 --config FILE       the same with the settings of a YAML file
  {PROGRAM} --sample.temperature 1.6       any setting is a flag; `run --help` lists them
  {PROGRAM} --resume-from default@2 --run hot --sample.temperature 1.6     fork a round
  {PROGRAM} status                         what the rounds measured so far
  {PROGRAM} doctor MODEL                   check a model before money is spent

Running the same command again goes on where it stopped; a larger --rounds adds rounds.
"""

RUN_DESCRIPTION = """\
Run or continue the loop. Results go to rounds/NAME, weights to checkpoints/NAME, below the current folder.
Settings come from the defaults, then --config FILE, then flags. In the list below "P" is the paper, arXiv
2604.01193, and "ours" a choice of this project.
"""

EXPORT_DESCRIPTION = """\
Write a round's merged model, or with --adapter ONE adapter for the base: a round's own adapter folder alone
on the base is a wrong model from round 2 on, because it was trained on top of the earlier ones.
"""

DECIDE_DESCRIPTION = """\
Replay the decision rule over a finished run, with the run's own settings or other ones, and compare with what
was decided. Writes nothing. For example with half the tolerated loss, which stops earlier; a lower
--monitor.false_alarm_rate stops later:
  decide default --monitor.margins heldout_pass_at_1=0.005
Samples are not drawn again: a second look that the run did not take cannot be taken here.
"""

PLAN_DESCRIPTION = """\
Predict a run from a short calibration on this machine: a little of every stage is done for real in a
temporary folder, a minute or a few. Starts no run and keeps nothing. Second looks are not in it.
"""

LAWS_DESCRIPTION = """\
Both models' next-token laws along the human-written reference texts, whole vocabulary: mass by rank, tokens
that survive truncation and entropy after it against temperature, and the same within bins of equal mass of
the first model's 20 likeliest tokens (arXiv 2604.01193, figure 6). A minute or two for a 135M model on a CPU.
  laws smollm2-135m-instruct checkpoints/default/round_005/merged
"""

DOCTOR_DESCRIPTION = """\
Check a model and this machine with the settings of a run, before anything is spent: one line per check,
pass, warn or fail with what to do. Exits with 1 if a check fails. With a MODEL named it also draws some
answers (a minute or two) and says whether they hold something to consolidate.
"""

EXIT_CODES = """\
exit codes: 0 finished, 1 a stage or the environment failed, 2 bad settings or input, 3 stopped by the
monitors (a result, not a failure), 130 interrupted (run the same command to go on)
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


class _Discreet(logging.Formatter):
    """Libraries repeat addresses and headers in their warnings; keys in them are not shown."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record), os.environ)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    interrupts.listen()
    printing = logging.StreamHandler()
    printing.setFormatter(_Discreet("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[printing])
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except SsdLoopError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(f"{os.strerror(error.errno)} ({error.filename or Path.cwd()}); {MAKE_ROOM}", 1)
        return _fail(f"{error.strerror or error}: {error.filename or 'no file named'}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted; finished work is kept, run the same command to go on", INTERRUPTED)


def _fail(message: str, code: int) -> int:
    text = without_secrets(" ".join(message.split()), os.environ)
    if len(text) > MESSAGE_LIMIT:  # the end says what to do
        text = f"{text[: MESSAGE_LIMIT - ENDING - 5]} ... {text[-ENDING:]}"
    print(text, file=sys.stderr)
    return code


def _dispatch(arguments: list[str]) -> int:
    parser, commands = _parser()
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in _TOP_FLAGS):
        arguments = ["run", *arguments]
    elif arguments[0] not in commands and not arguments[0].startswith("-"):
        raise ConfigError(f"unknown command {arguments[0]!r}; commands are {', '.join(commands)}")
    source = _settings(arguments[0], commands)
    options = parser.parse_args(arguments)
    flags = _flags(source, options) if source else {}
    try:
        result: int = options.action(options, flags)
    except Exception:
        interrupts.heed()  # or is it what a library made of one?
        raise
    return result


_TOP_FLAGS = ("-h", "--help", "--version")


def _flags(source: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as flags, nested."""
    from pydantic_settings import SettingsError

    try:
        flags: dict[str, Any] = source(parsed_args=_given(options))()
    except SettingsError as error:
        raise ConfigError(f"a flag cannot be read: {error}; write NAME=VALUE or JSON, see --help") from None
    return flags


def price(text: str) -> float:
    """Money for an hour: 0 or more. Its name is what argparse calls a value that is none."""
    found = float(text)
    if not 0.0 <= found < math.inf:
        raise ValueError
    return found


def _given(options: argparse.Namespace) -> argparse.Namespace:
    """Only flags with a value: a flag that was left out must not override the config file."""
    return argparse.Namespace(**{k: v for k, v in vars(options).items() if v is not None})


def _parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The parser and those of the commands, yet without the flags of settings (`_settings`)."""
    parser = _Parser(
        prog=PROGRAM,
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ssd_loop {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def command(name: str, summary: str, action: Any, **more: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **{"description": summary, **more},
        )
        sub.set_defaults(action=action)
        return sub

    run = command(
        "run",
        "the loop (the default command)",
        _run,
        description=RUN_DESCRIPTION,
        usage=f"{PROGRAM} [run] [--rounds N] [--SECTION.SETTING VALUE]...",
    )
    run.add_argument("--config", **CONFIG_FLAG)
    run.add_argument("--run", metavar="NAME", help="name of the run; default: the config's file name")
    run.add_argument(
        "--resume-from",
        metavar="ROUND",
        help="start from a round: its folder under checkpoints/, or RUN@ROUND (RUN@best). Under its own "
        "run's name (the default) that run goes on from there; under another --run it forks: the new "
        "run gets a copy of what it needs, inherits the settings, and may change all but how rounds are "
        "measured: prompts, sample, filter, train, monitor, baselines. --rounds counts its rounds too",
    )
    run.add_argument(
        "--continue-past-stop",
        action="store_true",
        help="go on where the monitors say stop; noted in rounds/NAME/continued.json",
    )

    status = command("status", "rounds, stages, metrics and verdicts so far", _status)
    status.add_argument("run", nargs="?", metavar="RUN", help="name of the run; default: the only one")
    status.add_argument("--json", **JSON_FLAG)

    plan = command(
        "plan",
        "tokens, time, memory, disk and money that a run will need, from a short calibration",
        _plan,
        description=PLAN_DESCRIPTION,
        usage=f"{PROGRAM} plan [--config FILE] [--rounds N] [--json] [--SECTION.SETTING VALUE]...",
    )
    plan.add_argument("--config", **CONFIG_FLAG)
    plan.add_argument("--json", **JSON_FLAG)

    report = command("report", "one HTML file that shows what a run did and what it bought", _report)
    report.add_argument("run", metavar="RUN", help="name of the run")
    report.add_argument("--compare", metavar="RUN2", help="put another run of the same base beside it")
    report.add_argument(
        "--price-per-device-hour",
        type=price,
        metavar="MONEY",
        help="in any currency, in place of the run's track.price_per_device_hour",
    )

    decide = command(
        "decide",
        "the decision rule over a finished run again, with other margins or error rate",
        _decide,
        description=DECIDE_DESCRIPTION,
        usage=f"{PROGRAM} decide RUN [--json] [--monitor.SETTING VALUE]...",
    )
    decide.add_argument("run", metavar="RUN", help="name of the run")
    decide.add_argument("--json", **JSON_FLAG)

    evaluate = command(
        "evaluate",
        "pass@k of any model folder or Hub id on the whole panels (a run: on 60 problems of each)",
        _evaluate,
        usage=f"{PROGRAM} evaluate MODEL [--sweep] [--json] [--out FOLDER] [--SECTION.SETTING VALUE]...",
    )
    evaluate.add_argument("target", metavar="MODEL", help="model folder, Hub id or packaged name")
    evaluate.add_argument(
        "--sweep",
        action="store_true",
        help="held-out pass@1 over the decoding settings of baselines.temperatures, .top_k and .top_p",
    )
    evaluate.add_argument("--out", type=Path, metavar="FOLDER", help="keep samples and results here")
    evaluate.add_argument("--json", **JSON_FLAG)

    laws = command(
        "laws",
        "forks and locks of two models: the paper's four panels on human-written text",
        _laws,
        description=LAWS_DESCRIPTION,
        usage=f"{PROGRAM} laws MODEL OTHER [--json] [--top-k N] [--top-p MASS] [--reference-tokens N]",
    )
    laws.add_argument("target", metavar="MODEL", help="model folder, Hub id or packaged name")
    laws.add_argument(
        "other", metavar="OTHER", help="the model to hold against it, such as a round's merged/"
    )
    laws.add_argument("--top-k", type=int, default=20, metavar="N", help="of evaluation, 0 = off (P: 20)")
    laws.add_argument("--top-p", type=float, default=0.8, metavar="MASS", help="of evaluation (P: 0.8)")
    laws.add_argument(
        "--reference-tokens", type=int, default=256, metavar="N", help="tokens of each text (256)"
    )
    laws.add_argument("--json", **JSON_FLAG)

    verify = command("verify", "hash every file of a run again, name what is damaged or foreign", _verify)
    verify.add_argument("run", metavar="RUN", help="name of the run")

    export = command(
        "export",
        "a round as a model folder, or as one adapter for the base, with a model card",
        _export,
        description=EXPORT_DESCRIPTION,
    )
    export.add_argument("round", metavar="RUN@ROUND", help="such as default@3 or default@best; or its folder")
    export.add_argument("--adapter", action="store_true", help="one adapter, all rounds joined by rank")
    export.add_argument("--out", type=Path, metavar="FOLDER", help="new folder; default: RUN-round_NNN here")
    export.add_argument("--base", metavar="MODEL", help="the base model, if it is not where the run had it")

    doctor = command(
        "doctor",
        "check a model, its template and this machine before a run",
        _doctor,
        description=DOCTOR_DESCRIPTION,
        usage=f"{PROGRAM} doctor [MODEL] [--config FILE] [--json] [--SECTION.SETTING VALUE]...",
    )
    doctor.add_argument("target", nargs="?", metavar="MODEL", help="model folder, Hub id or packaged name")
    doctor.add_argument("--config", **CONFIG_FLAG)
    doctor.add_argument("--json", **JSON_FLAG)

    sandbox = command("sandbox", "run one Python file in the sandbox, print one JSON line", _sandbox)
    sandbox.add_argument("file", type=Path, metavar="FILE", help="Python file")

    return parser, commands.choices


def _settings(command: str, parsers: Mapping[str, argparse.ArgumentParser]) -> Any:
    """Give a command its flags of settings, and return what reads them; None where it has none.

    Only the command that was asked for, because this takes longer than `status` does.
    """
    if command not in ("run", "plan", "decide", "evaluate", "doctor"):
        return None
    from pydantic_settings import CliSettingsSource

    from ssd_loop.config import DecideOptions, EvaluateOptions, RunConfig

    own: dict[str, Any] = {"decide": DecideOptions, "evaluate": EvaluateOptions}
    return CliSettingsSource(
        own.get(command, RunConfig),
        root_parser=parsers[command],
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
    )


def _run(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from ssd_loop import checkpoints
    from ssd_loop.config_file import load
    from ssd_loop.launch import launch

    origin = checkpoints.origin_of(options.resume_from, options.run, Path())
    named_after = options.config.stem if options.config else "default"
    if origin is not None:
        named_after = origin.place.run
    name = named_after if options.run is None else options.run
    config = load(options.config, flags, checkpoints.inherited(origin, name, options.config, Path()))

    return launch(
        name,
        config,
        origin,
        resumed_from=options.resume_from,
        goes_past_stops=options.continue_past_stop,
    )


def _status(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from ssd_loop.place import run_names
    from ssd_loop.report import status

    here = Path()
    names = run_names(here)
    if options.run is None and len(names) != 1:
        raise ConfigError(f"say which run: {', '.join(names)}" if names else "there is no run here yet")
    state = status.read(here, names[0] if options.run is None else options.run)
    if options.json:
        print(json.dumps(state))
    else:
        status.show(state, status.console())
    return 0


def _plan(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from ssd_loop import planning
    from ssd_loop.config_file import load
    from ssd_loop.report.status import console

    config = load(options.config, flags)
    found = planning.predict(config, price_per_device_hour=config.track.price_per_device_hour)
    if options.json:
        print(json.dumps(found))
    else:
        planning.show(found, console())
    return 0


def _report(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from ssd_loop.report import account, compare, page

    here, priced = Path(), {"price_per_device_hour": options.price_per_device_hour}
    if options.compare is None:
        found = account.gather(here, options.run, **priced)
        for line in page.summary(found):
            print(line)
        written = page.write(found)
    else:
        written = compare.write_comparison(here, options.run, options.compare, **priced)
    print(written)
    return 0


def _decide(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from ssd_loop import deciding
    from ssd_loop.report.status import console

    found = list(deciding.replay(Path(), options.run, flags.get("monitor", {})))
    if options.json:
        print(json.dumps([one.now.to_json() for one in found]))
    else:
        deciding.show(found, console())
    return 0


def _evaluate(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from ssd_loop.config_file import load
    from ssd_loop.launch import evaluate_model

    # A single measurement takes whole panels; a run's default thins them to what every round can afford.
    given = {
        "model": {**flags.get("model", {}), "name": options.target},
        "evaluate": {"limit": None, **flags.get("evaluate", {})},
    }
    config = load(None, {**flags, **given})
    if options.sweep and not config.baselines.temperatures:
        raise ConfigError("--sweep has no grid: baselines.temperatures is empty; name some")
    evaluate_model(config, sweep=options.sweep, out=options.out, as_json=options.json)
    return 0


def _laws(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from ssd_loop.report import law_panels
    from ssd_loop.report.status import console

    found = law_panels.compare(
        options.target,
        options.other,
        top_k=options.top_k,
        top_p=options.top_p,
        reference_tokens=options.reference_tokens,
        device="auto",
    )
    if options.json:
        print(json.dumps(found))
    else:
        law_panels.show(found, console())
    return 0


def _verify(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from ssd_loop import verifying
    from ssd_loop.place import COMPLETES, existing_folders

    place = existing_folders(Path(), options.run)
    found = verifying.verify(place)
    for path, reason in found.damaged:
        print(f"{path}: {reason}")
    if found.damaged:
        raise BadArtifactError(
            f"run {place.run}: damaged, missing or foreign: {len(found.damaged)}; restore those files, or "
            "move their folders away and run again"
        )
    print(
        f"{place.run}: {found.stages} stages and {found.files} files are as they were made, "
        f"{found.pruned} pruned, {len(found.unfinished)} unfinished"
    )
    if found.is_only_begun:
        print(f"run {place.run} was stopped while it was begun; {COMPLETES}")
    return 0


def _export(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from ssd_loop import checkpoints, exporting
    from ssd_loop.place import round_name

    origin = checkpoints.locate(options.round, Path())
    ending = "-adapter" if options.adapter else ""
    out = options.out or Path(f"{origin.place.run}-{round_name(origin.round)}{ending}")
    if options.adapter:
        exporting.export_adapter(origin, out)
    else:
        exporting.export_merged(origin, out, options.base)
    print(out)
    return 0


def _doctor(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from dataclasses import asdict

    from ssd_loop import doctor
    from ssd_loop.config_file import load
    from ssd_loop.report.status import console

    if options.target is not None:
        flags = {**flags, "model": {**flags.get("model", {}), "name": options.target}}
    found = doctor.examine(load(options.config, flags), samples=options.target is not None)
    findings = list(found) if options.json else list(doctor.show(found, console()))
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    return 1 if any(finding.verdict == "fail" for finding in findings) else 0


def _sandbox(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from ssd_loop import sandbox

    if options.file.exists() and not (options.file.is_file() or options.file.is_dir()):
        raise ConfigError(f"{options.file} is a device or pipe; name a Python file")  # it may have no end
    print(json.dumps(sandbox.run_file(options.file, sandbox.Limits())))
    return 0
