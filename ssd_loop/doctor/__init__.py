"""Checks a model and this machine before anything is spent: one finding per check, and no run is started.

Each check looks at the machine and hands what it saw to a pure `judge_` function. Nothing is written but
what resolving a model writes anyway, into the model cache and the Hub's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from rich.console import Console
from rich.text import Text

from ssd_loop import tracking
from ssd_loop.config import RunConfig
from ssd_loop.doctor.checks import (
    check_adapters,
    check_dtype,
    check_engine,
    check_prompts,
    check_sandbox,
    judge_tracking,
    open_model,
)
from ssd_loop.doctor.room import check_disk, check_memory
from ssd_loop.doctor.signal import check_signal
from ssd_loop.doctor.subject import Finding, Subject, Tasks, Verdict, one_line
from ssd_loop.doctor.template import check_context, check_date, check_stops, check_template, check_thinking
from ssd_loop.errors import SsdLoopError

STYLES: dict[Verdict, str] = {"pass": "green", "warn": "yellow", "fail": "bold red"}


def examine(config: RunConfig, *, samples: bool = False) -> Iterator[Finding]:
    """The findings of all checks, each as soon as it is known.

    Args:
        config: The settings of the run that is planned.
        samples: Whether some answers are drawn and judged, if nothing else fails; takes a minute or more.
    """
    failed = False
    for finding in _examine(config):
        failed |= finding.verdict == "fail"
        yield finding
    if samples and not failed:
        yield _guarded("signal", lambda: check_signal(config))


def _examine(config: RunConfig) -> Iterator[Finding]:
    tasks = Tasks(config)
    subject, finding = open_model(tasks)
    yield finding
    of_the_model: dict[str, Callable[[Subject], Finding]] = {
        "template": check_template,
        "stop tokens": check_stops,
        "date": check_date,
        "thinking": check_thinking,
        "context": check_context,
        "dtype": check_dtype,
        "adapters": check_adapters,
        "memory": check_memory,
        "disk": check_disk,
    }
    if subject is None:
        detail = f"left out, because they need the model: {', '.join(of_the_model)}"
        yield Finding("model", "warn", detail, "mend the model and look again")
    else:
        for name, check in of_the_model.items():
            yield _guarded(name, partial(check, subject))
    yield _guarded("engine", lambda: check_engine(config, subject))
    yield _guarded("sandbox", lambda: check_sandbox(config))
    yield _guarded("tracking", lambda: judge_tracking(config.track, tracking.resolve_mode(config.track)))
    yield _guarded("prompts", lambda: check_prompts(tasks))


def show(findings: Iterable[Finding], console: Console) -> Iterator[Finding]:
    """The findings, each printed as one line as soon as it is known."""
    for finding in findings:
        line = Text.assemble((finding.verdict, STYLES[finding.verdict]), f"  {finding.check:<11}  ")
        line.append("; ".join(filter(None, (finding.detail, finding.remedy))))
        console.print(line, soft_wrap=True)
        yield finding


def _guarded(name: str, look: Callable[[], Finding]) -> Finding:
    """The finding, or a fail where the check met the mistake that it is there to find."""
    from jinja2 import TemplateError

    try:
        return look()
    except SsdLoopError as error:
        return Finding(name, "fail", one_line(error))
    except TemplateError as error:
        detail = f"the chat template cannot write the prompt: {one_line(error)}"
        return Finding(name, "fail", detail, "mend the template or leave model.system_prompt unset")
