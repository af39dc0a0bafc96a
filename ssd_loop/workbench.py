"""What a run holds open: the base model, one engine with the current weights, and the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ssd_loop import models
from ssd_loop.config import RunConfig
from ssd_loop.engines import Engine, engine_name, open_engine
from ssd_loop.prompts import Renderer


@dataclass
class Workbench:
    """Opens heavy things when they are first needed, and once.

    Attributes:
        config: The run's settings.
        base: The model before the first round, in the dtype that the engine runs.
    """

    config: RunConfig
    base: models.ResolvedModel
    _engine: Engine | None = None

    def engine(self, model_dir: Path) -> Engine:
        """The run's one engine, holding the weights of `model_dir`."""
        if self._engine is None:
            self._engine = open_engine(self.config.engine, self.base.dtype)
        self._engine.load(model_dir)  # nothing is done where these weights are in it already
        return self._engine

    def release(self) -> None:
        """Give the engine's device memory back until it is asked again."""
        if self._engine is not None:
            self._engine.release()

    def close(self) -> None:
        """Stop the engine and all it started."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    @property
    def engine_name(self) -> str:
        """Which engine draws, told without opening it."""
        return engine_name(self.config.engine)

    @cached_property
    def renderer(self) -> Renderer:
        """The base model's tokenizer and template; every round renders with them."""
        from transformers import AutoTokenizer

        model = self.config.model
        tokenizer = AutoTokenizer.from_pretrained(self.base.path, trust_remote_code=False)
        return Renderer(tokenizer, model.system_prompt, model.template_settings())

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a turn."""
        return models.stop_token_ids(self.base.path)

    @cached_property
    def device(self) -> str:
        """The device that trains: cpu or cuda."""
        from ssd_loop.engines.transformers import choose_device

        device: str = choose_device(self.config.engine.device).type
        return device
