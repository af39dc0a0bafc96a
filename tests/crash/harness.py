"""Kill a real run again and again, resume it, and compare every byte with a run that was never stopped.

    python -m tests.crash.harness --kills 200 --vllm 20 --seed 1 --out kills.json

A third of the kills come at a random instant inside a random stage, a third at random named moments
(`tests.crash.kill_at`), and the others by the clock of the unbroken run: at an instant uniform between the
last kill and the next place, process start included. SIGKILL goes to the whole process group, so nothing in
it can tidy up. After every kill no process may be left and no file may be damaged.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ssd_loop.durable import read_jsonl
from ssd_loop.place import EVENTS, Place
from ssd_loop.verifying import verify
from tests import tiny
from tests.crash import full_run
from tests.runs import tree

KILL_AT = str(Path(__file__).parent / "kill_at.py")
MODELS: dict[str, tiny.TinyKind] = {"transformers": "llama", "vllm": "qwen3"}
KILLED = "killed"  # this file lies in the folder of a run that was killed and not gone on with yet
KILLS_PER_RUN = 9
GONE_WITHIN_S = 20.0  # all processes of a killed run; vLLM's worker hears of it through a closed pipe
FINISHES_WITHIN_S = 900.0
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
MOMENTS = {
    "sample": ("shard", "work", "manifest"),
    "filter": ("work", "manifest"),
    "train": ("step", "work", "manifest"),
    "merge": ("work", "manifest"),
    "evaluate": ("shard", "work", "manifest"),
    "second_look": ("shard", "work", "manifest"),
    "monitor": ("work", "manifest", "best"),
    "sweep": ("shard", "work", "manifest"),
    "final": ("shard", "work", "manifest"),
}


@dataclass(frozen=True)
class Kill:
    """When a process is killed.

    Attributes:
        target: ``ROUND/STAGE/MOMENT``, or ``ROUND/STAGE`` for `after_s` seconds into that stage; empty: by
            the clock alone.
    """

    target: str = ""
    after_s: float = 0.0

    @property
    def stage(self) -> tuple[int, str] | None:
        """The stage that it is to fall into."""
        parts = self.target.split("/")
        return (int(parts[0]), parts[1]) if self.target else None

    @property
    def is_named(self) -> bool:
        """Whether it is a named moment's."""
        return self.target.count("/") == 2

    @property
    def is_after_publishing(self) -> bool:
        """Whether its moment comes when its stage is on disk already, and again whenever a run is resumed."""
        return self.target.endswith(("/best", "/prune"))


@dataclass(frozen=True)
class Unbroken:
    """A run that was never stopped.

    Attributes:
        folder: Where it lies.
        engine: What drew.
        model: The base model's folder.
        files: Hash of every file that must come out the same.
        seconds: From the start of its process to the end.
        spans: Seconds from that start to the beginning and the end of each stage, in their order.
    """

    folder: Path
    engine: str
    model: Path
    files: Mapping[str, str]
    seconds: float
    spans: Mapping[tuple[int, str], tuple[float, float]]


@dataclass
class Tally:
    """What a series of kills came to.

    Attributes:
        kills: Processes that were killed.
        resumes: Processes that went on with a run that had been killed.
        runs: Runs that were finished and compared.
        differences: Files that differ from the unbroken run's, are missing there or here.
        damage: What `verify` called damaged right after a kill.
        left_behind: Processes that outlived a kill.
        fell: Kills by the stage they fell into, and by named moment.
    """

    kills: int = 0
    resumes: int = 0
    runs: int = 0
    differences: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    fell: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)

    def line(self, engine: str) -> str:
        """The tally in one line."""
        fell = ", ".join(f"{stage} {count}" for stage, count in self.fell.most_common())
        return (
            f"{engine}: {self.kills} kills ({sum(self.moments.values())} at named moments), {self.resumes} "
            f"resumes, {self.runs} runs; differences {len(self.differences)}, damage {len(self.damage)}, "
            f"processes left {len(self.left_behind)}; fell in {fell}"
        )


def unbroken(folder: Path, model: Path, engine: str) -> Unbroken:
    """Run without a kill; what it wrote and when."""
    folder.mkdir(parents=True)
    full_run.write(folder, model, engine)
    began = time.time()
    code, _ = attempt(folder, Kill(), FINISHES_WITHIN_S)
    seconds = time.time() - began
    assert code == 0, (folder / "log.txt").read_text()
    at: dict[tuple[int, str], dict[str, float]] = {}
    for row in read_jsonl(events(folder)):
        second = datetime.fromisoformat(row["time"]).timestamp() - began
        at.setdefault((row["round"], row["stage"]), {})[row["event"]] = max(0.0, second)
    spans = {key: (found["started"], found["finished"]) for key, found in at.items()}
    return Unbroken(folder, engine, model, tree(folder), seconds, spans)


def events(folder: Path) -> Path:
    """The log of stages that begin and end."""
    return Place(folder, "tiny").folder / EVENTS


def moments(run: Unbroken) -> list[str]:
    """Every named moment of a run, in order."""
    found = [f"{n}/{stage}/{moment}" for n, stage in run.spans for moment in MOMENTS[stage]]
    found.insert(found.index("0/final/shard") + 1, "0/final/second")
    last = max(n for n, stage in run.spans if stage == "monitor")
    found.insert(found.index(f"{last}/monitor/best") + 1, f"{last}/monitor/prune")
    return found


def left_s(run: Unbroken, done: Sequence[tuple[int, str]], following: Sequence[Kill]) -> float:
    """Seconds that a process is expected to need up to the next kill that has a place ahead, or to the end.

    Args:
        run: The unbroken run.
        done: The stages that are there.
        following: The kills that are still planned.
    """
    starting = next(iter(run.spans.values()))[0]
    reached = max((run.spans[key][1] for key in done), default=starting)
    ahead = [kill.stage for kill in following if kill.stage is not None and kill.stage not in done]
    until = run.spans[ahead[0]][0] if ahead else run.seconds
    return max(0.0, until - reached) + starting


def published(folder: Path, run: Unbroken) -> list[tuple[int, str]]:
    """The stages that are finished on disk."""
    place = Place(folder, "tiny")
    return [(n, stage) for n, stage in run.spans if place.stage(n, stage).exists()]


def attempt(folder: Path, kill: Kill, lives_s: float) -> tuple[int, list[str]]:
    """Start or resume the run, and kill it as planned, at the latest after `lives_s` seconds.

    Returns:
        Its exit code, and the command lines of processes that outlived it.
    """
    program = [KILL_AT, kill.target] if kill.is_named else ["-m", "ssd_loop"]
    lines, before = len(read_jsonl(events(folder))), children()
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *program, "--config", "tiny.yaml"],
            cwd=folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + lives_s
    waits = kill.stage is not None and not kill.is_named
    while process.poll() is None and time.monotonic() < deadline:
        if waits and kill.stage in begun(folder, lines):
            waits, deadline = False, time.monotonic() + kill.after_s
        time.sleep(0.01)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait(), outliving(before)


def begun(folder: Path, lines: int) -> list[tuple[int, str]]:
    """The stages that were begun since the log had so many lines."""
    return [(row["round"], row["stage"]) for row in read_jsonl(events(folder))[lines:]]


def adopt_orphans(do: bool = True) -> None:
    """Become the parent of what killed runs leave behind, to see it; or stop being so."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(do), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def children() -> dict[int, str]:
    """Command lines of this process's children, by process id; of a zombie it is empty."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid():
                command = (status.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(status.parent.name)] = command
        except (OSError, ValueError):
            continue  # gone meanwhile
    return found


def outliving(before: Mapping[int, str]) -> list[str]:
    """Children that are new and do not go away."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while True:
        left = {pid: command for pid, command in children().items() if pid not in before}
        for pid in [pid for pid, command in left.items() if not command]:
            os.waitpid(pid, 0)
            del left[pid]
        if not left or time.monotonic() > deadline:
            return list(left.values())
        time.sleep(0.05)


def where(folder: Path, lines: int) -> str:
    """What an attempt was at when it was killed, by its log: a kind of stage, whichever the round."""
    rows = read_jsonl(events(folder))[lines:]
    if not rows:
        return "starting"
    return str(rows[-1]["stage"]) if rows[-1]["event"] == "started" else f"after {rows[-1]['stage']}"


def planned(run: Unbroken, kills: int, rng: random.Random) -> list[Kill]:
    """So many kills of one run, those at places in the run's order."""
    kinds = [rng.choice(("clock", "inside", "named")) for _ in range(kills)]
    ordered, stages = moments(run), list(run.spans)
    targets: list[Kill] = []
    for kind in kinds:
        if kind == "inside":
            n, stage = rng.choice(stages)
            begins, ends = run.spans[n, stage]
            # The log has whole seconds; a stage may last longer than the first time, too.
            targets.append(Kill(f"{n}/{stage}", rng.uniform(0.0, ends - begins + 0.5)))
        elif kind == "named":
            targets.append(Kill(rng.choice(ordered)))
    places = [f"{n}/{stage}" for n, stage in stages]
    targets.sort(key=lambda kill: places.index("/".join(kill.target.split("/")[:2])))
    return [Kill() if kind == "clock" else targets.pop(0) for kind in kinds]


def kill_and_resume(run: Unbroken, folder: Path, kills: int, rng: random.Random, tally: Tally) -> None:
    """Kill one run up to so many times, let it finish, and compare it."""
    following = planned(run, kills, rng)
    while following:
        kill, done = following.pop(0), published(folder, run)
        if kill.stage in done and not kill.is_after_publishing:
            kill = Kill()  # its place lies behind: by the clock instead
        lives_s = rng.uniform(0.0, left_s(run, done, following)) if kill.stage is None else FINISHES_WITHIN_S
        if not kill_once(run, folder, kill, lives_s, tally):
            break
    tally.differences += finish(run, folder, tally)


def kill_once(run: Unbroken, folder: Path, kill: Kill, lives_s: float, tally: Tally) -> bool:
    """Begin or resume a run and kill it; whether it was killed, and not finished before that."""
    if not (folder / "tiny.yaml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        full_run.write(folder, run.model, run.engine)
    place = Place(folder, "tiny")
    lines = len(read_jsonl(events(folder)))
    tally.resumes += (folder / KILLED).exists()
    (folder / KILLED).unlink(missing_ok=True)
    code, left = attempt(folder, kill, lives_s)
    tally.left_behind += left
    if code == 0:
        return False
    assert code == -signal.SIGKILL, (kill, (folder / "log.txt").read_text())
    (folder / KILLED).touch()
    tally.kills += 1
    tally.fell[where(folder, lines)] += 1
    if kill.is_named:
        tally.moments[kill.target] += 1
    if place.folder.exists():
        tally.damage += [f"{kill}: {path}: {reason}" for path, reason in verify(place).damaged]
    return True


def finish(run: Unbroken, folder: Path, tally: Tally) -> list[str]:
    """Let a run finish; the files that differ from the unbroken run's."""
    tally.resumes += (folder / KILLED).exists()
    (folder / KILLED).unlink(missing_ok=True)
    code, left = attempt(folder, Kill(), FINISHES_WITHIN_S)
    assert code == 0, (folder / "log.txt").read_text()
    tally.left_behind += left
    tally.runs += 1
    tally.damage += [f"{path}: {reason}" for path, reason in verify(Place(folder, "tiny")).damaged]
    return differing(run.files, tree(folder))


def differing(wanted: Mapping[str, str], got: Mapping[str, str]) -> list[str]:
    """Names of files that are not the same in both."""
    return sorted(name for name in {*wanted, *got} if wanted.get(name) != got.get(name))


def series(run: Unbroken, folder: Path, kills: int, rng: random.Random) -> Tally:
    """As many runs as it takes to come to so many kills."""
    tally, runs = Tally(), 0
    while tally.kills < kills:
        runs += 1
        wanted = min(KILLS_PER_RUN, kills - tally.kills)
        kill_and_resume(run, folder / f"broken_{runs}", wanted, rng, tally)
        print(tally.line(run.engine), file=sys.stderr, flush=True)
    return tally


def main() -> int:
    """Kill runs of both engines; print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="kills in all")
    parser.add_argument("--vllm", type=int, default=20, help="how many of them while vLLM draws")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file for the tallies")
    parser.add_argument("--folder", type=Path, help="where the runs lie for a while")
    options = parser.parse_args()
    adopt_orphans()
    found: dict[str, dict[str, Any]] = {}
    bad = 0
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for engine, kills in (("transformers", options.kills - options.vllm), ("vllm", options.vllm)):
            if kills < 1:
                continue
            root = Path(scratch) / engine
            model = tiny.build(MODELS[engine], root / "model")
            run = unbroken(root / "unbroken", model, engine)
            tally = series(run, root, kills, random.Random(f"{options.seed} {engine}"))
            print(tally.line(engine))
            found[engine] = vars(tally) | {"seconds_unbroken": round(run.seconds, 1), "seed": options.seed}
            bad += len(tally.differences) + len(tally.damage) + len(tally.left_behind)
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
