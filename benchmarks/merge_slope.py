"""python benchmarks/merge_slope.py: how much of a small update survives rounding to bfloat16.

Trains the default model on its own samples of the built-in prompts, merges with either rounding, and prints
the gate's slope for each learning rate and number of steps (design: 5e-6 x 10, 2e-4 x 10, 2e-4 x 40).
"""

import tempfile
import time
from pathlib import Path

from ssd_loop import gate, merging, models, sampling, training
from ssd_loop.config import RunConfig
from ssd_loop.evaluation import reference_texts
from ssd_loop.lora import Term
from ssd_loop.problems import load_panel
from ssd_loop.records import Sample, read_rows
from ssd_loop.training_rows import TrainingRow
from ssd_loop.workbench import Workbench

CASES = ((5e-6, 10), (2e-4, 10), (2e-4, 40))
SETTINGS = {"sample": {"samples_per_prompt": 2, "max_new_tokens": 96}}


def main() -> None:
    """Print the table."""
    config = RunConfig.model_validate(SETTINGS)
    base = models.resolve(config.model.name, None, config.model.dtype)
    bench = Workbench(config, base)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        rows = draw(bench, root)
        probes = [text["token_ids"] for text in reference_texts(config.evaluate, bench.renderer)]
        print(f"{'rate':>8} {'steps':>5} {'rounding':>10} {'slope':>6} {'se':>6} {'effect':>9} {'gate s':>6}")
        for rate, steps in CASES:
            settings = config.train.model_copy(update={"learning_rate": rate})
            adapter = root / f"adapter-{rate}-{steps}"
            adapter.mkdir()
            training.train(
                settings,
                model_dir=base.path,
                rows=rows[: steps * settings.batch_size],
                seed=1,
                device="cpu",
                out=adapter,
            )
            for rounding in ("stochastic", "nearest"):
                out = root / f"merged-{rate}-{steps}-{rounding}"
                out.mkdir()
                merging.merge(rounding, base_dir=base.path, terms=[Term(adapter)], out=out)
                began = time.perf_counter()
                found = gate.measure(base.path, out, [Term(adapter)], gate.cut(probes), "cpu")
                seconds = time.perf_counter() - began
                print(
                    f"{rate:8.0e} {steps:5d} {rounding:>10} {found.slope:6.3f} {found.se:6.3f} "
                    f"{found.effect:9.2e} {seconds:6.1f}",
                    flush=True,
                )


def draw(bench: Workbench, root: Path) -> list[TrainingRow]:
    """Own samples of the base as training rows."""
    out = root / "sample"
    out.mkdir()
    sampling.run(
        bench.config.sample,
        load_panel("train"),
        bench.drawing,
        engine=bench.engine(bench.base.path),
        round_index=1,
        policy_round=0,
        out=out,
    )
    bench.close()
    samples = read_rows(out / sampling.SAMPLES, Sample)
    return [TrainingRow(row.prompt_token_ids, row.token_ids) for row in samples]


if __name__ == "__main__":
    main()
