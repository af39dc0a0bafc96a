"""The command line that the parts share: measure and write JSON, or one arm once in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ARM = "--arm"
ROOT = Path(__file__).resolve().parents[2]
THREADS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # a run sets them itself, other tools do without


def main(
    measure: Callable[[Path, int], dict[str, Any]], one: Callable[..., dict[str, Any]], doc: str | None
) -> None:
    """Measure, and write FOLDER/<part>.json; or print what one arm gave."""
    if sys.argv[1:2] == [ARM]:
        print(json.dumps(one(*sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for what is drawn once and the result"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of every arm, in turn")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found = measure(given.out.resolve(), given.repeats)
    file = given.out / f"{Path(sys.argv[0]).stem}.json"
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def alone(module: str, *arguments: str, more: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What one arm printed last, run in a process of its own.

    Args:
        module: Its module.
        arguments: Of the arm.
        more: Environment variables.
    """
    environment = {name: value for name, value in os.environ.items() if name not in THREADS}
    done = subprocess.run(
        [sys.executable, "-m", module, ARM, *arguments],
        cwd=ROOT,
        env=environment | dict(more or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    lines = done.stdout.splitlines()  # vLLM writes its log there too, also after us
    found: dict[str, Any] = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    return found
