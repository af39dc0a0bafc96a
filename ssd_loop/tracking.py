"""Weights & Biases: one run over kills and resumes, every metric by exact name against `round`.

What a round is shown as is in `ssd_loop.tracking_views`; here it is sent, once each.

Tracking never stops the training: whatever goes wrong there becomes one warning.
"""

from __future__ import annotations

import logging
import netrc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal
from urllib.parse import urlparse

from ssd_loop import tracking_views as views
from ssd_loop.config import RunConfig, TrackConfig
from ssd_loop.durable import append_jsonl, read_jsonl
from ssd_loop.errors import ConfigError
from ssd_loop.monitors.decision import Decision
from ssd_loop.sandbox.processes import children_of

log = logging.getLogger(__name__)

HOST = "api.wandb.ai"
INIT_TIMEOUT_S = 30
FINISH_TIMEOUT_S = 10  # an interrupt must end within 20 s; the files stay for `wandb sync`
FLUSH_S = 0.25  # between W&B's writes to its file; its own 15 s would lose rounds to a kill
CLOSE_TIMEOUT_S = 12  # where even that does not end it: W&B waits on for artifacts
WRITING_TIMEOUT_S = 60  # of a finished run to its own disk; a busy machine takes long to start W&B
LAST_WAIT_S = 2  # until calls notice that W&B's own process is gone
SERVICE = "wandb-core"
LOGGED = "logged.jsonl"  # what was sent, so that a restart does not send it again
WORKSPACE_MADE = {"workspace": True}
CONCLUDING = ("sweep", "final")  # stages of a run's end, of the base and then of the best round

# W&B reports on itself to its makers, and waits up to 30 s for that when the interpreter exits.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

Mode = Literal["online", "offline", "disabled"]


def has_key() -> bool:
    """Whether a W&B API key is set, in the environment or in netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        entries = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return any(entries.authenticators(host) for host in (HOST, _server()))


def _server() -> str:
    """Host that this version of W&B would talk to; its default has changed between versions."""
    import wandb

    return urlparse(wandb.Settings().base_url).hostname or HOST


def resolve_mode(config: TrackConfig) -> Mode:
    """The mode to use: auto is online where a key is set, else offline.

    Raises:
        ConfigError: online was asked for and no key is set.
    """
    if config.mode == "auto":
        return "online" if has_key() else "offline"
    if config.mode == "online" and not has_key():
        raise ConfigError(
            "track.mode is online but no W&B key is set; set WANDB_API_KEY, run 'wandb login', or use "
            "--track.mode offline"
        )
    return config.mode


@dataclass
class Tracker:
    """Sends each round once, when it is complete, as W&B's step of the same number.

    All of W&B is used in a thread of its own: online it waits for the network, tables and artifacts included.

    Attributes:
        folder: The run's folder; W&B keeps its files in ``wandb/`` below it.
        run_id: Id of the W&B run, the same after every restart.
    """

    mode: Mode
    config: RunConfig
    name: str
    run_id: str
    folder: Path
    _run: Any = None
    _defined: set[str] = field(default_factory=set)
    _pending: dict[int, views.Scalars] = field(default_factory=dict)
    _at_the_end: views.Scalars = field(default_factory=dict)
    _tasks: SimpleQueue[Callable[[], None] | None] = field(default_factory=SimpleQueue)
    _worker: threading.Thread | None = None
    _exit_code: int = 1
    _failed: bool = False
    _warned: set[str] = field(default_factory=set)

    def log(self, round_index: int, stage: str, metrics: Mapping[str, Any]) -> None:
        """Collect a finished stage's numbers; a round is sent after its last stage.

        What `monitor` says is read from its decision, which holds more than its metrics. `sweep` and `final`
        come when all rounds are sent: they go to the summary, as `final/base/...` and `final/best/...`.
        """
        numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
        if stage in CONCLUDING:
            whose = "best" if round_index else "base"
            self._at_the_end |= {f"{stage}/{whose}/{name}": value for name, value in numbers.items()}
            if stage == CONCLUDING[-1] and round_index:
                self._later(partial(self._send_summary, dict(self._at_the_end)))
            return
        row = self._pending.setdefault(round_index, {})
        if stage != "monitor":
            row |= {f"{stage}/{name}": value for name, value in numbers.items()}
        if stage == ("monitor" if round_index else "evaluate"):
            complete = sorted(n for n in self._pending if n <= round_index)
            self._later(partial(self._send_rounds, {n: self._pending.pop(n) for n in complete}))

    def stopped(self, decision: Decision) -> None:
        """Alert whoever subscribed to the run that the monitors stopped it; once for each stop."""
        self._later(partial(self._send_alert, decision))

    def report(self, path: Path) -> None:
        """Keep the run's report as an artifact; once for each last round, so that a rerun sends nothing."""
        self._later(partial(self._send_report, path))

    def close(self, exit_code: int) -> None:
        """Finish the W&B run; what is not uploaded in `CLOSE_TIMEOUT_S` stays on disk.

        A run that finished offline waits for W&B to write, longer than an interrupt may take.
        """
        if self._worker is None:
            return
        self._exit_code = exit_code
        self._tasks.put(None)
        only_writes = exit_code == 0 and self.mode == "offline"
        self._worker.join(WRITING_TIMEOUT_S if only_writes else CLOSE_TIMEOUT_S)
        if self._worker.is_alive():
            self._failed = True
            log.warning(
                "W&B does not answer; run again, or wandb sync --include-online %s", self.folder / "wandb"
            )
        if self._failed:  # else W&B's own process is waited for, or complains, when this one exits
            _kill_service()
            self._worker.join(LAST_WAIT_S)
            _forget_service()
        self._worker = None

    def _later(self, task: Callable[[], None]) -> None:
        if self.mode == "disabled" or self._failed:
            return
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, daemon=True, name="tracking")
            self._worker.start()
        self._tasks.put(task)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._failed:
                continue
            try:
                task()
            except Exception as error:  # nothing that W&B raises may stop a training run
                self._warn("tracking stopped: %s; the run goes on", error)
                self._failed = True
        if self._run is not None:
            with self._aside("finishing"):
                self._run.finish(exit_code=self._exit_code)

    @contextmanager
    def _aside(self, what: str) -> Iterator[None]:
        """Something that the numbers do without: where it fails, one warning says so."""
        try:
            yield
        except Exception as error:
            self._warn(f"W&B: {what} failed (%s); tracking goes on", error)

    def _warn(self, text: str, error: Exception) -> None:
        """Say something once, and nothing more once tracking failed."""
        if not self._failed and text not in self._warned:
            self._warned.add(text)
            log.warning(text, _line(error))

    def _send_rounds(self, rounds: Mapping[int, views.Scalars]) -> None:
        """Send rounds; what was measured after a round was sent goes along with the next one."""
        late: views.Scalars = {}
        for n, measured in sorted(rounds.items()):
            if self._has({"round": n}):
                late = late | measured
            else:
                self._send_round(n, late | measured)
                late = {}

    def _send_round(self, n: int, numbers: views.Scalars) -> None:
        run = self._opened()
        numbers = numbers | views.scalars(self.folder, n, self.config.track.price_per_device_hour)
        for name in sorted(set(numbers) - self._defined):
            # Exact names only: overlapping globs pick a random winner in W&B.
            run.define_metric(name, step_metric="round")
            self._defined.add(name)
        # W&B's own step is the round too: a restarted offline run goes on where the last one ended.
        run.log({"round": n, **numbers}, step=n)
        with self._aside("the table of samples"):
            self._send_samples(n)
        run.log({}, step=n, commit=True)  # else the row waits for the next one
        self._mark({"round": n})
        if n and self.mode == "online" and not self._has(WORKSPACE_MADE):
            with self._aside("the workspace"):
                views.workspace(run.entity, run.project, self.name, self.run_id, self._defined).save()
                self._mark(WORKSPACE_MADE)

    def _send_samples(self, n: int) -> None:
        import wandb

        if rows := views.sample_rows(self.folder, n):
            self._opened().log({views.TABLE: wandb.Table(columns=views.COLUMNS, data=rows)}, step=n)

    def _send_summary(self, numbers: views.Scalars) -> None:
        mark = {"summary": numbers}
        if not self._has(mark):
            self._opened().summary.update(numbers)
            self._mark(mark)

    def _send_alert(self, decision: Decision) -> None:
        mark = {"stopped": decision.round}
        if self._has(mark):
            return
        self._opened().alert(
            title=f"{decision.kind}: stopped after round {decision.round}",  # W&B takes up to 64 characters
            text=f"{self.name}: {decision.reason}. Failure: {decision.attribution}. Best round: "
            f"{decision.best_round}.",
            level="WARN",
        )
        self._mark(mark)

    def _send_report(self, path: Path) -> None:
        import wandb

        mark = {"report": max((mark["round"] for mark in self._marks() if "round" in mark), default=None)}
        if self._has(mark):
            return
        with self._aside("the report"):
            artifact = wandb.Artifact(f"report-{self.run_id}", type="report")
            artifact.add_file(str(path), name=path.name)
            self._opened().log_artifact(artifact)
            self._mark(mark)

    def _marks(self) -> list[dict[str, Any]]:
        """What was sent so far, also before a restart."""
        return read_jsonl(self.folder / "wandb" / LOGGED)

    def _has(self, mark: Mapping[str, Any]) -> bool:
        return mark in self._marks()

    def _mark(self, mark: Mapping[str, Any]) -> None:
        """Note that something was sent, once W&B has written it to disk: a kill loses the note sooner."""
        time.sleep(2 * FLUSH_S)
        append_jsonl(self.folder / "wandb" / LOGGED, mark)

    def _opened(self) -> Any:
        if self._run is None:
            self._init()
        return self._run

    def _init(self) -> None:
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
            disable_git=True,
            save_code=False,
            x_transaction_log_flush_interval=FLUSH_S,
        )
        wandb.setup(settings)  # silences what is said outside of a run, such as at login
        own = self.folder / "wandb"
        own.mkdir(parents=True, exist_ok=True)
        # Files of artifacts wait here for their upload, else in the home, which a sync later may not find.
        os.environ.setdefault("WANDB_DATA_DIR", str(own.absolute()))
        options: dict[str, Any] = {
            "project": self.config.track.project,
            "name": self.name,
            "id": self.run_id,
            # Offline this is written down, and `wandb sync` appends instead of overwriting.
            "resume": "allow",
            "dir": str(self.folder),
            "config": self.config.model_dump(mode="json"),
            "settings": settings,
        }
        if self.mode == "online":
            try:
                self._run = wandb.init(mode="online", **options)
            except (wandb.Error, OSError) as error:
                log.warning("W&B cannot be reached (%s); tracking offline", _line(error))
                _forget_service()  # it still holds the run's id
                self.mode = "offline"
        if self._run is None:
            self._run = wandb.init(mode="offline", **options)
        self._run.define_metric("round")


def _line(error: Exception) -> str:
    """An error as a piece of one line."""
    return " ".join(str(error).split())[:200]


def _kill_service() -> None:
    """End W&B's own process, a child of this one that can wait for a server for ever."""
    for pid in children_of(os.getpid()):
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == SERVICE:
                os.killpg(pid, signal.SIGKILL)  # it leads a group of its own


def _forget_service() -> None:
    """Undo what W&B left to be done when the interpreter exits."""
    import wandb

    with suppress(Exception, SystemExit):  # it exits with the code of its own process
        wandb.teardown()
