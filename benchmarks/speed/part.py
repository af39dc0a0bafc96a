"""The command line that the parts share: measure and write JSON, or one arm once in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssd_loop.engines import CPU_ENVIRONMENT

ARM = "--arm"
ROOT = Path(__file__).resolve().parents[2]


def main(
    measure: Callable[[Path, int], dict[str, Any]],
    doc: str | None,
    one: Callable[..., dict[str, Any]] | None = None,
) -> None:
    """Measure, and write FOLDER/<part>.json; or print what `one` arm gave, where the part has arms."""
    if one and sys.argv[1:2] == [ARM]:
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


def alone(module: str, *arguments: str) -> dict[str, Any]:
    """What one arm gave, run in a process of its own."""
    return printed(module, ARM, *arguments)


def printed(module: str, *arguments: str, path: Path = ROOT) -> dict[str, Any]:
    """The JSON that a module printed last, run as a tool that knows nothing of how a run settles torch.

    Args:
        module: The module.
        arguments: On its command line.
        path: What comes first when it imports.
    """
    environment = {name: value for name, value in os.environ.items() if name not in CPU_ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    lines = done.stdout.splitlines()  # vLLM writes its log there too, also after us
    found: dict[str, Any] = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    return found
