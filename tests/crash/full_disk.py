"""``python -m tests.crash.full_disk MODEL STAGE...``: a run on a small disk that fills up in those stages.

To be started in a mount namespace of its own (``unshare --mount``): it mounts a small file system, which goes
away with the namespace. In every attempt the disk is filled when the named stage (``ROUND/STAGE``, or
``start``) begins, all but the bytes after a colon (``1/train:4096``); then the filler is removed and the next
attempt goes on. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ssd_loop.place import Place
from ssd_loop.verifying import verify
from tests.crash import full_run
from tests.crash.harness import begun, events
from tests.runs import tree

DISK_BYTES = 64 << 20
FILLER = "filler"
WAIT_S = 600.0


def main() -> None:
    """Mount, run, fill, run again, and tell what happened."""
    model, *moments = sys.argv[1:]
    folder = Path(tempfile.mkdtemp(prefix="full-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder], check=True)
    logs = Path(tempfile.mkdtemp(prefix="full-disk-logs-"))
    full_run.write(folder, Path(model), "transformers")
    attempts = [attempt(folder, logs / f"{n}.txt", moment) for n, moment in enumerate(moments)]
    attempts.append(attempt(folder, logs / "last.txt", None))
    print(json.dumps({"attempts": attempts, "files": tree(folder)}))


def attempt(folder: Path, log: Path, moment: str | None) -> dict[str, Any]:
    """Start or resume, with the disk filled at a moment; how it ended, and what is damaged."""
    named, _, left = (moment or "").partition(":")
    lines = len(list(events(folder).open())) if events(folder).exists() else 0
    if named == "start":
        fill(folder, int(left or 0))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ssd_loop", "--config", "tiny.yaml"],
            cwd=folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=output,
            stderr=output,
        )
    deadline = time.monotonic() + WAIT_S
    while process.poll() is None and time.monotonic() < deadline:
        if named and any(f"{n}/{stage}" == named for n, stage in begun(folder, lines)):
            fill(folder, int(left or 0))
            named = ""
        time.sleep(0.002)
    code = process.wait(WAIT_S)
    (folder / FILLER).unlink(missing_ok=True)
    place = Place(folder, "tiny")
    damage = [f"{path}: {reason}" for path, reason in verify(place).damaged] if place.folder.exists() else []
    text = log.read_text(errors="replace").strip()
    reached = begun(folder, lines)[-1:] if events(folder).exists() else []
    return {
        "moment": moment,
        "code": code,
        "last": text.splitlines()[-1] if text else "",
        "traceback": "Traceback" in text,
        "text": text if "Traceback" in text else "",
        "reached": "/".join(map(str, reached[0])) if reached else "start",
        "damage": damage,
    }


def fill(folder: Path, left: int) -> None:
    """Take all room but `left` bytes, from a run that is writing."""
    with (folder / FILLER).open("wb") as file:
        while True:
            room = os.statvfs(folder)
            take = room.f_bavail * room.f_frsize - left
            if take <= 0:
                return
            with suppress(OSError):  # the run took some of it meanwhile
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, take)
                return


if __name__ == "__main__":
    main()
