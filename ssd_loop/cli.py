"""The command line. It reads flags and prints; everything it starts lives elsewhere."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic_settings import CliSettingsSource, SettingsError

from ssd_loop import __version__
from ssd_loop.config import EvaluateOptions, RunConfig
from ssd_loop.config_file import load
from ssd_loop.errors import ConfigError, SsdLoopError

PROGRAM = "python -m ssd_loop"
INTERRUPTED = 130
MESSAGE_LIMIT = 400

DESCRIPTION = f"""\
Repeated simple self-distillation of a code model: each round samples solutions from the model, filters
them, fine-tunes the same model on them through LoRA, merges, measures, and decides whether to go on.

  {PROGRAM} --rounds 5                     five rounds on the packaged 135M model
  {PROGRAM} --rounds 5 --config FILE       the same with the settings of a YAML file
  {PROGRAM} --sample.temperature 1.6       any setting is a flag; `run --help` lists them
  {PROGRAM} status                         what the rounds measured so far

Running the same command again goes on where it stopped; a larger --rounds adds rounds.
"""

RUN_DESCRIPTION = """\
Run or continue the loop. Results go to rounds/NAME, weights to checkpoints/NAME, below the current folder.
Settings come from the defaults, then --config FILE, then flags. In the list below "P" is the paper, arXiv
2604.01193, and "ours" a choice of this project.
"""

EXIT_CODES = """\
exit codes: 0 finished, 1 a stage or the environment failed, 2 bad settings or input, 3 stopped by the
monitors (a result, not a failure), 130 interrupted (run the same command to go on)
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, _terminate)  # also where a shell started us in the background, deaf to it
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except SsdLoopError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"{error.strerror or error}: {error.filename or 'no file named'}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted; finished work is kept, run the same command to go on", INTERRUPTED)


def _terminate(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> int:
    text = " ".join(message.split())
    print(text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 3] + "...", file=sys.stderr)
    return code


def _dispatch(arguments: list[str]) -> int:
    parser, sources = _parser()
    commands = ("run", "status", "evaluate", "sandbox")
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in _TOP_FLAGS):
        arguments = ["run", *arguments]
    elif arguments[0] not in commands and not arguments[0].startswith("-"):
        raise ConfigError(f"unknown command {arguments[0]!r}; commands are {', '.join(commands)}")
    options = parser.parse_args(arguments)
    flags: dict[str, Any] = {}
    if options.command in sources:
        try:
            flags = sources[options.command](parsed_args=_given(options))()
        except SettingsError as error:
            raise ConfigError(f"a flag cannot be read: {error}; see --help") from None
    result: int = options.action(options, flags)
    return result


_TOP_FLAGS = ("-h", "--help", "--version")


def _given(options: argparse.Namespace) -> argparse.Namespace:
    """Only flags with a value: a flag that was left out must not override the config file."""
    return argparse.Namespace(**{k: v for k, v in vars(options).items() if v is not None})


def _parser() -> tuple[argparse.ArgumentParser, dict[str, Any]]:
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
    run.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings")
    run.add_argument("--run", metavar="NAME", help="name of the run; default: the config's file name")

    status = command("status", "rounds, stages, metrics and verdicts so far", _status)
    status.add_argument("run", nargs="?", metavar="RUN", help="name of the run; default: the only one")
    status.add_argument("--json", action="store_true", help="print JSON for scripts")

    evaluate = command(
        "evaluate",
        "pass@k of any model folder or Hub id on the panels",
        _evaluate,
        usage=f"{PROGRAM} evaluate MODEL [--json] [--out FOLDER] [--SECTION.SETTING VALUE]...",
    )
    evaluate.add_argument("target", metavar="MODEL", help="model folder, Hub id or packaged name")
    evaluate.add_argument("--out", type=Path, metavar="FOLDER", help="keep samples and results here")
    evaluate.add_argument("--json", action="store_true", help="print JSON for scripts")

    sandbox = command("sandbox", "run one Python file in the sandbox, print one JSON line", _sandbox)
    sandbox.add_argument("file", type=Path, metavar="FILE", help="Python file")

    sources = {
        "run": _settings(RunConfig, run),
        "evaluate": _settings(EvaluateOptions, evaluate),
    }
    return parser, sources


def _settings(model: Any, parser: argparse.ArgumentParser) -> Any:
    return CliSettingsSource(
        model,
        root_parser=parser,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
    )


def _run(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    config = load(options.config, flags)
    named_after = options.config.stem if options.config else "default"
    name = named_after if options.run is None else options.run
    from ssd_loop.launch import launch

    return launch(name, config)


def _status(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from ssd_loop.report import status

    here = Path()
    names = status.runs(here)
    if options.run is None and len(names) != 1:
        raise ConfigError(f"say which run: {', '.join(names)}" if names else "there is no run here yet")
    state = status.read(here, names[0] if options.run is None else options.run)
    if options.json:
        print(json.dumps(state))
    else:
        status.show(state, status.console())
    return 0


def _evaluate(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from ssd_loop.launch import evaluate_model

    # A single measurement takes whole panels; a run's default thins them to what every round can afford.
    given = {
        "model": {**flags.get("model", {}), "name": options.target},
        "evaluate": {"limit": None, **flags.get("evaluate", {})},
    }
    config = load(None, {**flags, **given})
    evaluate_model(config, out=options.out, as_json=options.json)
    return 0


def _sandbox(options: argparse.Namespace, flags: dict[str, Any]) -> int:
    from ssd_loop import sandbox

    print(json.dumps(sandbox.run_file(options.file, sandbox.Limits())))
    return 0
