"""Weights & Biases: one run over kills and resumes, every metric by exact name against `round`.

Tracking never stops the training: whatever goes wrong there becomes one warning.
"""

from __future__ import annotations

import logging
import netrc
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from ssd_loop.config import RunConfig, TrackConfig
from ssd_loop.durable import append_jsonl
from ssd_loop.errors import ConfigError

log = logging.getLogger(__name__)

HOST = "api.wandb.ai"
INIT_TIMEOUT_S = 30
FINISH_TIMEOUT_S = 10  # an interrupt must end within 20 s; the files stay for `wandb sync`
LOGGED = "logged.jsonl"

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
    """Sends each round's metrics once, when the round is complete.

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
    _known: set[str] = field(default_factory=set)
    _pending: dict[int, dict[str, float]] = field(default_factory=dict)

    def log(self, round_index: int, stage: str, metrics: dict[str, Any]) -> None:
        """Collect a finished stage's numbers; a round is sent after its last stage."""
        numbers = {
            f"{stage}/{name}": float(value)
            for name, value in metrics.items()
            if isinstance(value, (int, float))
        }
        self._pending.setdefault(round_index, {}).update(numbers)
        if self.mode == "disabled" or stage != ("monitor" if round_index else "evaluate"):
            return
        try:
            self._send(round_index, self._pending.pop(round_index))
        except Exception as error:  # nothing that W&B raises may stop a training run
            self.mode = "disabled"
            log.warning("tracking stopped: %s; the run goes on", error)

    def close(self, exit_code: int) -> None:
        """Finish the W&B run."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=exit_code)
        except Exception as error:
            log.warning("tracking did not finish cleanly: %s", error)
        self._run = None

    def _send(self, round_index: int, numbers: dict[str, float]) -> None:
        marks = self.folder / "wandb" / LOGGED
        sent = marks.read_text(encoding="utf-8").splitlines() if marks.exists() else []
        if f'{{"round": {round_index}}}' in sent:
            return
        run = self._run or self._init()
        for name in sorted(set(numbers) - self._known):
            # Exact names only: overlapping globs pick a random winner in W&B.
            run.define_metric(name, step_metric="round")
            self._known.add(name)
        run.log({"round": round_index, **numbers})
        append_jsonl(marks, {"round": round_index})

    def _init(self) -> Any:
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
            disable_git=True,
            save_code=False,
        )
        (self.folder / "wandb").mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {
            "project": self.config.track.project,
            "name": self.name,
            "id": self.run_id,
            "dir": str(self.folder),
            "config": self.config.model_dump(mode="json"),
            "settings": settings,
        }
        if self.mode == "online":
            try:
                self._run = wandb.init(mode="online", resume="allow", **options)
            except (wandb.Error, OSError) as error:
                reason = " ".join(str(error).split())[:200]
                log.warning("W&B cannot be reached (%s); tracking offline", reason)
                wandb.teardown()  # its service still holds the run's id
                self.mode = "offline"
        if self._run is None:
            self._run = wandb.init(mode="offline", **options)
        self._run.define_metric("round")
        return self._run
