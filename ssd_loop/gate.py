"""Does a merged model say what base plus adapters would? The slope of one change on the other.

For every token of fixed texts, three log-probs are compared: of the base, of the base with the adapters
added exactly, and of the merged files as they were written. Rounding that throws an update away shows as a
slope of (merged - base) on (exact - base) below one; it is 1 for a merge that kept the update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ssd_loop.errors import StageFailedError
from ssd_loop.lora import Term, delta, layout, opened
from ssd_loop.memory import give_back

LOW, HIGH = 0.9, 1.1  # docs/decisions/0009: nearest rounding falls out, stochastic stays in
TOKENS = 128  # of each probe at most: a standard error of about 0.03 after 10 steps at 5e-6 (decision 0009)
FIRST_TEXTS = 8  # looked at first, of all kinds; enough for all but tiny updates (decision 0009)
SURE = 4.0  # standard errors to both bounds that make the rest needless
LOGITS_AT_ONCE = 2**27  # float32 elements, 512 MiB
SMALLEST_EFFECT = 1e-7  # nats per token; below it float32 itself decides and no slope can be told

Weight = Callable[[str, Any], Any]


@dataclass(frozen=True, slots=True)
class Slope:
    """How much of the update's effect on log-probs the merged weights have.

    Attributes:
        slope: Least squares through the origin over all tokens; None where the update has no effect.
        se: Its standard error, tokens of one text counted together.
        effect: Root mean square of the exact change, nats per token.
        residual: Mean negative log-likelihood of the written weights less the exact ones, nats per token.
    """

    slope: float | None
    se: float
    effect: float
    residual: float = 0.0


def check(
    *,
    base_dir: Path,
    merged_dir: Path,
    terms: Sequence[Term],
    probes: Sequence[Sequence[int]],
    device: str,
) -> dict[str, float | int | None]:
    """Metrics of the comparison. Everything is computed in float32 from the stored weights.

    Memory: the base as stored, and one module in float32.

    Args:
        base_dir: The pristine base.
        merged_dir: What was written.
        terms: The adapters that were merged.
        probes: Token ids of fixed texts. The same number of first tokens of each is used; of more than
            `FIRST_TEXTS` texts the others only where the first leave a doubt.
        device: cpu or cuda.

    Raises:
        StageFailedError: The slope is outside of 0.9 to 1.1 by more than two standard errors.
    """
    texts = cut(probes)
    seen = first_look(texts)
    found = measure(base_dir, merged_dir, terms, seen, device)
    if not clear(found) and len(seen) < len(texts):
        seen = texts
        found = measure(base_dir, merged_dir, terms, seen, device)
    if failed(found):
        raise StageFailedError(
            f"the merged model has {found.slope:.2f} of the update's effect on log-probs (standard error "
            f"{found.se:.2f}), and {LOW} to {HIGH} is asked for; set merge.rounding to stochastic, raise "
            "train.learning_rate or train.epochs, or set model.dtype to float32"
        )
    return {
        "gate_slope": found.slope,
        "gate_slope_se": found.se,
        "gate_effect": found.effect,
        "gate_residual": found.residual,
        "gate_tokens": sum(len(text) - 1 for text in seen),
    }


def cut(probes: Sequence[Sequence[int]]) -> list[list[int]]:
    """The first tokens of every probe, as many as the shortest has, `TOKENS` at most."""
    length = min(TOKENS, *(len(probe) for probe in probes))
    return [list(probe[:length]) for probe in probes]


def first_look(texts: list[list[int]]) -> list[list[int]]:
    """`FIRST_TEXTS` of the texts, evenly spaced, because texts of one kind stand together; or all."""
    return texts[:: max(1, len(texts) // FIRST_TEXTS)][:FIRST_TEXTS]


def clear(found: Slope) -> bool:
    """Whether the slope is so far within its bounds that more texts could hardly say otherwise."""
    return (
        found.slope is not None
        and LOW + SURE * found.se <= found.slope
        and found.slope <= HIGH - SURE * found.se
    )


def failed(found: Slope) -> bool:
    """Whether the slope is outside of its bounds by more than the probes leave in doubt."""
    if found.slope is None:
        return False
    return found.slope + 2 * found.se < LOW or found.slope - 2 * found.se > HIGH


def measure(
    base_dir: Path, merged_dir: Path, terms: Sequence[Term], texts: Sequence[Sequence[int]], device: str
) -> Slope:
    """The slope over all tokens of `texts`, which are of one length."""
    import torch

    base = _base_logprobs(base_dir, tuple(map(tuple, texts)), device)
    model = _loaded(base_dir, device)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    tokens = torch.tensor(texts, device=device)  # (texts, T)
    with opened(terms, shapes) as parts, _written(merged_dir) as written:

        def exact(name: str, stored: Any) -> Any:
            change = delta(parts[name]).to(stored.device) if name in parts else 0.0
            return stored.float() + change

        def merged(name: str, stored: Any) -> Any:
            return written(name).float().to(stored.device) if name in parts else stored.float()

        wanted = logprobs(model, tokens, exact) - base
        got = logprobs(model, tokens, merged) - base
    del model
    give_back()
    return slope(wanted.double().cpu(), got.double().cpu())


def _loaded(base_dir: Path, device: str) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        base_dir, dtype="auto", trust_remote_code=False, use_safetensors=True
    )
    return model.to(device).eval()


@lru_cache(maxsize=2)  # the first texts, and all
def _base_logprobs(base_dir: Path, texts: tuple[tuple[int, ...], ...], device: str) -> Any:
    """Log-probs of the base, the same in every round of a process: (texts, T - 1) in float32."""
    import torch

    tokens = torch.tensor(texts, device=device)
    found = logprobs(_loaded(base_dir, device), tokens, lambda _name, stored: stored.float())
    give_back()
    return found


def slope(wanted: Any, got: Any) -> Slope:
    """Slope of `got` on `wanted`, both (texts, tokens), through the origin.

    The standard error takes the texts as the units: sqrt(sum_text (sum_token x e)^2) / sum x^2, the
    sandwich estimator with clusters (Liang and Zeger 1986) for one regressor.
    """
    total = float((wanted * wanted).sum())
    effect = math.sqrt(total / wanted.numel())
    residual = float((wanted - got).mean())
    if effect < SMALLEST_EFFECT:
        return Slope(None, 0.0, effect, residual)
    value = float((wanted * got).sum()) / total
    scores = (wanted * (got - value * wanted)).sum(dim=1)
    return Slope(value, float((scores * scores).sum()) ** 0.5 / total, effect, residual)


def logprobs(model: Any, tokens: Any, weight: Weight) -> Any:
    """Log-prob of every token but the first, (texts, T - 1), in float32 with the weights that `weight` gives.

    Args:
        model: A causal language model in any dtype.
        tokens: Token ids, (texts, T).
        weight: Called with a parameter's name and its stored value when a module is about to run; what it
            returns, in float32, is used in its place.
    """
    import torch

    found = []
    at_once = max(1, LOGITS_AT_ONCE // (tokens.shape[1] * model.config.get_text_config().vocab_size))
    with torch.inference_mode(), _replaced(model, weight):
        for some in tokens.split(at_once):
            law = model(input_ids=some, use_cache=False).logits[:, :-1].float().log_softmax(dim=-1)
            found.append(law.gather(2, some[:, 1:, None])[:, :, 0])
    return torch.cat(found)


@contextmanager
def _replaced(model: Any, weight: Weight) -> Iterator[None]:
    """Give every module other weights for as long as it runs, and no longer."""
    import torch

    kept: dict[int, dict[str, Any]] = {}

    def before(prefix: str) -> Callable[[Any, Any], None]:
        def swap(module: Any, _inputs: Any) -> None:
            own = {name: value for name, value in module._parameters.items() if value is not None}
            kept[id(module)] = own
            for name, stored in own.items():
                value = weight(f"{prefix}{name}", stored.data)
                module._parameters[name] = torch.nn.Parameter(value, requires_grad=False)

        return swap

    def after(module: Any, _inputs: Any, _output: Any) -> None:
        module._parameters.update(kept.pop(id(module)))

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if any(value is not None for value in module._parameters.values()):
                prefix = f"{name}." if name else ""
                hooks.callback(module.register_forward_pre_hook(before(prefix)).remove)
                hooks.callback(module.register_forward_hook(after).remove)
        yield


@contextmanager
def _written(folder: Path) -> Iterator[Callable[[str], Any]]:
    """A reader of single tensors from a model folder's files."""
    from safetensors import safe_open

    with ExitStack() as files:
        where = {}
        for file in sorted(folder.glob("*.safetensors")):
            tensors = files.enter_context(safe_open(file, framework="pt"))
            where.update(dict.fromkeys(layout(tensors), tensors))
        yield lambda name: where[name].get_tensor(name)
