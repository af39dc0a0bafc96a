"""What costs time when TRL and PEFT train on a CPU, and changes no result beyond rounding: left out here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ssd_loop.training_rows import IGNORED


@contextmanager
def quick(peft_model: Any, device: str) -> Iterator[None]:
    """Train a LoRA model the quick way meanwhile; the model itself stays changed. A GPU has its own way."""
    if device != "cpu":
        yield
        return
    from ssd_loop.cpu_training import adapters, attention, layers, loss_head

    _score_completions_only(peft_model)
    with attention.in_place_of_pytorchs(), adapters.in_place_of_pefts(), loss_head.in_place_of_trls():
        layers.use(peft_model)
        yield


def _score_completions_only(peft_model: Any) -> None:
    """Let TRL's loss head see completion tokens only, which it arranges for itself on GPUs alone.

    On a CPU it scores prompts and padding too, which took a third of the time on SmolLM2-135M. The loss comes
    out with the same bits.
    """
    import torch

    wanted: list[Any] = []

    def shrink_labels(_module: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if inputs.get("labels") is None:  # the probe, which has no loss
            wanted.clear()
            return None
        labels = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)
        wanted[:] = [labels != IGNORED]
        return args, inputs | {"labels": None, "shift_labels": labels[wanted[0]].unsqueeze(0)}

    def shrink_states(_module: Any, _args: Any, output: Any) -> Any:
        if not wanted:
            return None
        output.last_hidden_state = output.last_hidden_state[wanted[0]].unsqueeze(0)
        return output

    peft_model.register_forward_pre_hook(shrink_labels, with_kwargs=True)
    peft_model.get_base_model().base_model.register_forward_hook(shrink_states)
