"""What all parts measure on: the default model, prompts of the default recipe, answers drawn once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssd_loop.engines import Request
    from ssd_loop.workbench import Workbench

PROMPTS, NEW_TOKENS = 64, 128
LAW = (1.0, 20, 0.8)  # temperature, top_k, top_p
ROWS = "rows.json"


def bench() -> Workbench:
    """The default recipe's workbench."""
    from ssd_loop import models
    from ssd_loop.config_file import load
    from ssd_loop.workbench import Workbench

    config = load(None, {})
    base = models.resolve(config.model.name, config.model.revision, config.model.dtype)
    return Workbench(config, base)


def requests(of: Workbench, law: tuple[float, int, float] = LAW) -> list[Request]:
    """One completion of each of the first prompts."""
    from ssd_loop.prompts import load_prompts
    from ssd_loop.sampling import Decoding, plan

    decoding = Decoding(*law, max_new_tokens=NEW_TOKENS)
    prompts = load_prompts(of.config.prompts)[:PROMPTS]
    return [draw.request for draw in plan(of.drawing, prompts, 1, decoding=decoding, round_index=0)]


def rows_file(folder: Path, of: Workbench) -> Path:
    """(prompt, completion) token ids, drawn by the engine the first time and kept in `folder`."""
    file = folder / ROWS
    if not file.is_file():
        asked = requests(of)
        done = list(of.engine(of.base.path).generate(asked))
        of.close()
        pairs = zip(asked, done, strict=True)
        file.write_text(json.dumps([[r.prompt_token_ids, c.token_ids] for r, c in pairs]))
    return file


def read_rows(file: Path) -> list[tuple[list[int], list[int]]]:
    """What `rows_file` wrote."""
    return [(prompt, completion) for prompt, completion in json.loads(file.read_text())]
