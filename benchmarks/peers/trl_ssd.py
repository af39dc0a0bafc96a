"""One pass of TRL 1.14's `SSDTrainer`: 64 prompts, 128 new tokens, LoRA of rank 16, batches of 8.

    python -m benchmarks.peers.trl_ssd MODEL PROMPTS.json

Run with that TRL on PYTHONPATH (`peers/requirements.txt`; `benchmarks.speed.rounds` does it). PROMPTS.json
is a list of chats. Prints seconds with and without start-up and peak memory as one line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

BEGAN = time.perf_counter()


def main() -> None:
    """Train, and say what it took."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl.experimental.ssd import SSDConfig, SSDTrainer

    model, prompts = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SSDTrainer(
            model=model,
            args=SSDConfig(
                output_dir=scratch,
                use_cpu=True,
                num_train_epochs=1,
                per_device_train_batch_size=8,
                max_completion_length=128,
                temperature=1.0,
                top_k=20,
                top_p=0.8,
                report_to="none",
                disable_tqdm=True,
                seed=0,
            ),
            train_dataset=Dataset.from_list([{"prompt": chat} for chat in prompts]),
            processing_class=AutoTokenizer.from_pretrained(model),
            peft_config=LoraConfig(r=16, target_modules="all-linear"),
        )
        ready = time.perf_counter()
        trainer.train()
        ended = time.perf_counter()
    found = {
        "trl": trl.__version__,
        "seconds": ended - ready,
        "with_start_s": ended - BEGAN,
        "steps": trainer.state.global_step,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
