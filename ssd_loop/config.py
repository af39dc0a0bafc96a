"""Every setting, typed and frozen. The source of a default stands in its description.

"P" is the paper (arXiv 2604.01193), "ours" a choice of this project explained in ``docs/decisions``.
Fields marked ``speed_only`` change how fast or where a result is made, never what it is: they stay out
of the fingerprints (`ssd_loop.store.fingerprint`).
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ssd_loop.secret import has_secret

DEFAULT_MODEL = "smollm2-135m-instruct"

FilterName = Literal[
    "empty",
    "stub",
    "truncated",
    "unparsable",
    "does_not_run",
    "minority",
    "fails_tests",
    "duplicate",
    "too_short",
    "too_long",
    "surprise",
    "raw",
]
EXECUTING: tuple[FilterName, ...] = (
    "does_not_run",
    "minority",
    "fails_tests",
)  # filters that run the samples' code
PanelName = Literal["probe", "heldout", "ood", "twin", "report"]
SAMPLES_PER_PROBLEM: dict[PanelName, int] = {
    "probe": 2,
    "heldout": 2,
    "ood": 1,
    "twin": 2,
    "report": 1,
}
MonitorName = Literal[
    "heldout_pass_at_1",
    "heldout_coverage",
    "hard_tier_pass_at_1",
    "gate_precision",
    "ood_pass_at_1",
    "twin_gap",
    "reference_nll",
    "richness",
    "wrong_agreement",
    "fork_loss",
    "lock_leakage",
    "dead_share",
    "recycling",
    "self_judgement",
]
MARGINS: dict[MonitorName, float] = {
    "heldout_pass_at_1": 0.01,
    "heldout_coverage": 0.02,
    "hard_tier_pass_at_1": 0.02,
    "gate_precision": 0.02,
    "ood_pass_at_1": 0.02,
    "twin_gap": 0.03,
    "reference_nll": 0.03,  # nats per token
    "richness": 0.15,  # share of round 0's
    "wrong_agreement": 0.03,  # of pairs that ran: .05 of the wrong ones where three of four answers are wrong
    "fork_loss": 0.15,  # share of round 0's entropy
    "lock_leakage": 0.005,
    "dead_share": 0.05,
    "recycling": 0.10,
    "self_judgement": 0.03,  # area under the curve
}
Share = Annotated[float, Field(ge=0.0, le=1.0)]


Template = Literal["auto", "plain", "function", "stdin"]
Checker = Literal["none", "python", "stdin", "exact"]
ColumnName = Literal["starter_code", "solution", "tier", "entry_point", "tests"]
Scalar = bool | int | float | str


def speed_only(default: Any, description: str, **limits: Any) -> Any:
    """A field that cannot change any result, only its speed, place or reporting."""
    extra: dict[str, JsonValue] = {"affects_result": False}
    return Field(default, description=description, json_schema_extra=extra, **limits)


def added_later(default: Any, description: str, **limits: Any) -> Any:
    """A field that is left out of fingerprints while it has its default, which is what was done before."""
    extra: dict[str, JsonValue] = {"neutral": True}
    return Field(default, description=description, json_schema_extra=extra, **limits)


LARGEST = 2**31 - 1


class Section(BaseModel):
    """Frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, on and true as a truth value, which would count as 1."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind in (int, float, int | None):
            raise ValueError("a number is expected")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _whole_numbers_fit(cls, value: Any) -> Any:
        """Engines and libraries hold counts in 32 bits."""
        numbers = (
            value if isinstance(value, tuple) else value.values() if isinstance(value, dict) else (value,)
        )
        if cls.__name__ != "Range" and any(type(n) is int and abs(n) > LARGEST for n in numbers):
            raise ValueError(f"whole numbers go up to {LARGEST}")
        return value

    def result_settings(self) -> dict[str, Any]:
        """The settings that change results, as plain data: what a fingerprint is made of."""
        fields = type(self).model_fields
        dumped = self.model_dump(mode="json")
        return {
            name: dumped[name]
            for name, field in fields.items()
            if affects_result(field) and not (is_neutral(field) and getattr(self, name) == field.default)
        }


def affects_result(field: Any) -> bool:
    """Whether a change of this field changes what a stage writes."""
    return bool((field.json_schema_extra or {}).get("affects_result", True))


def is_neutral(field: Any) -> bool:
    """Whether this field is left out of fingerprints while it has its default."""
    return bool((field.json_schema_extra or {}).get("neutral", False))


def _carries_no_key(value: str) -> str:
    """What names a source is recorded with the run, so a key in it would be too."""
    if has_secret(value):
        raise ValueError("an address with a key in it would be recorded; log in with `hf auth login` instead")
    return value


class ModelConfig(Section):
    """Which model is distilled into itself."""

    # Models and prompts are known by their content, which every manifest names: where they lie may change.
    name: str = speed_only(
        DEFAULT_MODEL, "Packaged name, folder of a Hugging Face model, or Hub id.", min_length=1
    )
    revision: str | None = speed_only(None, "Commit or branch of a Hub id.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="Precision of round 0 and every merge; auto: the checkpoint's own."
    )
    system_prompt: str | None = Field(
        None, description="System message of every prompt; unset: the chat template's own (ours)."
    )
    enable_thinking: bool | None = added_later(
        None, "Handed to the chat template of hybrid thinking models (Qwen3); unset: the template's own."
    )
    reasoning_effort: Literal["low", "medium", "high"] | None = added_later(
        None, "Handed to the chat template of GPT-OSS (P appendix C.1: high); unset: the template's own."
    )

    _no_key = field_validator("name", mode="after")(_carries_no_key)

    def template_settings(self) -> dict[str, Any]:
        """What the chat template is given besides the messages: nothing that is unset."""
        given = {"enable_thinking": self.enable_thinking, "reasoning_effort": self.reasoning_effort}
        return {name: value for name, value in given.items() if value is not None}


def _iso(value: Any) -> Any:
    """YAML reads a bare 2025-02-01 as a date; here dates are ISO text."""
    if isinstance(value, list | tuple):
        return [_iso(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value


class Range(Section):
    """Bounds of a column's values, both included; text is compared by as many characters as the bound has.

    So dates are ISO text, and 2025-05 as `max` includes all of May.
    """

    min: Scalar | None = None
    max: Scalar | None = None

    @field_validator("min", "max", mode="before")
    @classmethod
    def _dates_are_text(cls, value: Any) -> Any:
        return _iso(value)

    @model_validator(mode="after")
    def _bounds_are_of_one_kind(self) -> Range:
        bounds = [bound for bound in (self.min, self.max) if bound is not None]
        if not bounds:
            raise ValueError("a range needs min, max or both")
        if len({isinstance(bound, str) for bound in bounds}) > 1:
            raise ValueError("min and max of a range must both be numbers or both be text")
        return self


class DataConfig(Section):
    """One source of tasks: where its rows are and which column holds what."""

    # Tasks are known by their content, which every manifest names: where they came from may change.
    source: str = speed_only(
        "builtin",
        "builtin; a .jsonl or .parquet file; a Hub data set (OWNER/NAME or OWNER/NAME@REVISION) or its "
        "folder; or hf://datasets/OWNER/NAME[@REVISION]/FILE.",
        min_length=1,
    )
    subset: str | None = speed_only(None, "Configuration of a Hub data set.")
    split: str = speed_only("train", "Split of a Hub data set.", min_length=1)
    prompt_column: str = speed_only("prompt", "Column that holds the task text.", min_length=1)
    id_column: str = speed_only(
        "id",
        "Column that holds the task's id; where there is no column `id`, ids are made from the text.",
        min_length=1,
    )
    columns: dict[ColumnName, str | tuple[str, ...]] = speed_only(
        {},
        "Columns of starter_code, solution (human-written), tier, entry_point and tests (one or several); "
        "a.b looks into a column that holds JSON.",
    )
    where: dict[str, Scalar | tuple[Scalar, ...] | Range] = speed_only(
        {}, "Keep rows whose column has this value, one of these values, or lies from min to max."
    )
    template: Template = speed_only(
        "auto",
        "Wording around the text: function (shows starter code), stdin (a program that reads standard "
        "input), plain (none); auto: function where a row has starter code or its tests call a function, "
        "else stdin if that is the checker or other rows may have starter code, else plain, but for exact "
        "the request to end with the number.",
    )
    checker: Checker = speed_only(
        "none",
        "How answers are judged: python (tests as source), stdin (inputs and expected outputs, calls of a "
        "function included), exact (last number); none: only for prompts.",
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="Use this many tasks, spread evenly; unset: all, but 120 of the built-in prompts.",
    )
    seed: int | None = speed_only(None, "Draw the `limit` tasks at random with this seed.", ge=0)

    _no_key = field_validator("source", mode="after")(_carries_no_key)

    @field_validator("where", mode="before")
    @classmethod
    def _dates_are_text(cls, value: Any) -> Any:
        return {name: _iso(item) for name, item in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _columns_fit(self) -> DataConfig:
        several = [role for role, named in self.columns.items() if not isinstance(named, str)]
        if any(role != "tests" for role in several):
            raise ValueError(f"columns.{several[0]} names several columns, which only tests may")
        if self.checker != "none" and not self.columns.get("tests"):
            raise ValueError(f"checker {self.checker} needs columns.tests")
        return self


class SampleConfig(Section):
    """How self-samples are drawn: temperature, then top-k, then top-p (P appendix A)."""

    seed: int = Field(0, ge=0, le=2**31 - 1, description="Run seed; every other seed derives from it.")
    temperature: float = Field(
        1.0,
        gt=0.0,
        le=10.0,
        description="Sampling temperature T_train (ours; P table 3: 0.8 to 1.6).",
    )
    top_k: int = Field(20, ge=0, description="Keep the k likeliest tokens, 0 = off (P table 3: 20).")
    top_p: float = Field(0.8, gt=0.0, le=1.0, description="Nucleus mass kept (P table 3: 0.8).")
    max_new_tokens: int = Field(160, ge=1, description="Longest completion, tokens (ours; P: 128K).")
    samples_per_prompt: int = Field(1, ge=1, le=1024, description="Completions per prompt (P: 1).")
    policy: Literal["previous", "base"] = added_later(
        "previous", "Whose weights draw each round's samples: the previous round's or the base's (ours)."
    )
    shard_size: int = Field(
        256,
        ge=8,
        description="Requests drawn at once, and redone whole after a kill; few leave the engine half idle.",
    )


class FilterConfig(Section):
    """Which samples are dropped before training; the first filter that matches is the reason."""

    filters: tuple[FilterName, ...] = Field(
        ("raw",),
        min_length=1,
        description="Applied in order; raw = empty + stub (P section 3.1); minority drops answers that "
        "behave otherwise than most of their prompt's; fails_tests keeps what passes the prompt's tests "
        "(rejection sampling: a verifier, so no longer SSD).",
    )
    too_short_share: Share = Field(
        0.1, description="Share of shortest texts that too_short drops (apple/ml-ssd: 10 %)."
    )
    too_long_share: Share = Field(0.1, description="Share of longest texts that too_long drops (ours).")
    surprise_low: Share = Field(
        0.05, description="surprise drops below this quantile of mean log-prob (ours)."
    )
    surprise_high: Share = Field(
        0.95, description="surprise drops above this quantile of mean log-prob (ours)."
    )

    @model_validator(mode="after")
    def _band_is_ordered(self) -> FilterConfig:
        if self.surprise_low >= self.surprise_high:
            raise ValueError("surprise_low must be below surprise_high")
        return self


class TrainConfig(Section):
    """LoRA fine-tuning on the raw samples. P trains all weights (AdamW .9/.95, decay .1, cosine)."""

    learning_rate: float = Field(
        2e-5,
        gt=0.0,
        le=1.0,
        description="Peak rate; LoRA needs more than P's 5e-6 (ours, docs/decisions/0007).",
    )
    final_lr_share: Share = Field(
        0.2, description="Last rate of the cosine as a share of the peak (P: 1e-6 / 5e-6)."
    )
    warmup_share: Share = Field(0.1, description="Share of steps that warm up (P: 250 of 2,500).")
    weight_decay: float = Field(0.1, ge=0.0, le=1.0, description="AdamW decay (P section 3.1).")
    adam_beta2: float = Field(0.95, gt=0.0, lt=1.0, description="AdamW second beta (P section 3.1).")
    max_grad_norm: float = Field(1.0, gt=0.0, description="Gradient clipping norm (ours).")
    epochs: int = Field(1, ge=1, le=100, description="Passes over the kept samples (P: about 8).")
    batch_size: int = Field(8, ge=1, description="Samples per optimiser step (P: 32).")
    micro_batch_size: int | None = speed_only(
        None, "Samples per forward pass; must divide batch_size. None: the most up to 4 that do.", ge=1
    )
    lora_rank: int = Field(16, ge=1, le=512, description="Rank of each adapter (ours; P: no LoRA).")
    lora_alpha: int = Field(32, ge=1, description="Adapter scale is lora_alpha / lora_rank (ours).")
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all-linear"] = Field(
        "all-linear",
        description="Linear layers that get an adapter; all-linear leaves out lm_head, and the experts of "
        "a mixture.",
    )
    start_from: Literal["previous", "base"] = added_later(
        "previous",
        "What each round's adapter is trained on: the previous round's weights or the base (ours).",
    )
    data_policy: Literal["replace", "accumulate", "accumulate-subsample"] = added_later(
        "replace",
        "Samples trained on: this round's; all rounds' together; or as many as this round kept, drawn from "
        "all rounds.",
    )
    human_share: float = added_later(
        0.0, "Share of training rows that are human-written solutions of the prompts (ours).", ge=0.0, lt=1.0
    )
    probe_every: int = Field(
        8, ge=0, description="Steps between probes of reference NLL inside training; 0 = none (ours)."
    )
    probe_margin: float = Field(
        0.1,
        gt=0.0,
        description="Rise of reference NLL since the round's first step, nats per token, that is a cliff and "
        "ends the run at its best round (ours; the test adds four standard errors).",
    )

    @property
    def micro_batch(self) -> int:
        """Samples of one forward pass."""
        if self.micro_batch_size is not None:
            return min(self.micro_batch_size, self.batch_size)
        return max(size for size in (1, 2, 3, 4) if self.batch_size % size == 0)

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> TrainConfig:
        if self.batch_size % self.micro_batch:
            raise ValueError("micro_batch_size must divide batch_size")
        return self


class MergeConfig(Section):
    """How base plus adapters becomes a model folder."""

    rounding: Literal["stochastic", "nearest"] = Field(
        "stochastic", description="Rounding to 16 bits; nearest can lose most of an update (ours)."
    )
    keep_last: int = speed_only(
        2, "Merged models kept besides the best; older ones are rebuilt from their adapters.", ge=1
    )


class EvaluateConfig(Section):
    """How every round is measured; the same in all rounds."""

    panels: tuple[PanelName, ...] = Field(
        ("probe", "heldout", "ood"),
        min_length=1,
        description="Problem sets measured each round; twin: the held-out problems with other names, which "
        "show whether their text was learned by heart.",
    )
    sources: dict[PanelName, DataConfig] = speed_only(
        {}, "Panels that take other tasks than the built-in ones, each with the fields of `prompts`."
    )
    samples_per_problem: Annotated[int, Field(ge=1)] | dict[PanelName, int] = Field(
        dict(SAMPLES_PER_PROBLEM),
        description="Completions per problem: one number, or PANEL=NUMBER for some panels.",
    )
    baseline_multiplier: int = Field(
        4, ge=4, le=64, description="Round 0 draws this many times the samples (ours; monitors)."
    )
    limit: int | None = Field(
        60, ge=1, description="Use this many problems per panel, spread evenly; unset: all."
    )
    pass_at: tuple[int, ...] = Field((1,), min_length=1, description="The k of pass@k.")
    temperature: float = Field(0.8, gt=0.0, le=10.0, description="Evaluation temperature (ours).")
    top_k: int = Field(0, ge=0, description="Evaluation top-k, 0 = off (ours).")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="Evaluation nucleus mass (ours).")
    max_new_tokens: int = Field(128, ge=1, description="Longest answer, tokens (ours).")
    reference_tokens: int = Field(
        256, ge=16, description="Tokens scored of each human-written reference text (ours)."
    )
    diversity_at: int = Field(2, ge=2, description="m of distinct@m: programs rarefied per problem (ours).")

    @field_validator("samples_per_problem", mode="after")
    @classmethod
    def _every_panel_has_a_count(cls, value: int | dict[PanelName, int]) -> dict[PanelName, int]:
        if isinstance(value, int):
            return dict.fromkeys(SAMPLES_PER_PROBLEM, value)
        if any(count < 1 for count in value.values()):
            raise ValueError("every panel needs at least 1 sample per problem")
        return {**SAMPLES_PER_PROBLEM, **value}

    @model_validator(mode="after")
    def _monitors_have_their_panels(self) -> EvaluateConfig:
        if "heldout" not in self.panels:
            raise ValueError("evaluate.panels needs heldout, which decides and selects")
        if len(set(self.panels)) != len(self.panels):
            raise ValueError("evaluate.panels names a panel twice")
        for panel, data in self.sources.items():
            if panel == "twin":
                raise ValueError("sources.twin cannot be set: twins are made of the heldout problems")
            if data.source == "builtin" or data.checker == "none":
                raise ValueError(f"sources.{panel} needs a source and a checker")
        most = max(self.counts[panel] for panel in self.panels)
        if not all(1 <= k <= most for k in self.pass_at):
            raise ValueError(f"pass_at must lie between 1 and the {most} samples per problem")
        return self

    @property
    def counts(self) -> dict[PanelName, int]:
        """Completions per problem of every panel."""
        assert isinstance(self.samples_per_problem, dict)
        return self.samples_per_problem


class BaselinesConfig(Section):
    """Baselines, measured once a run ends: base and best round, each at its best decoding settings.

    Settings are chosen on the held-out problems; the figure that is reported comes from the panel `report`.
    """

    temperatures: tuple[Annotated[float, Field(gt=0.0, le=10.0)], ...] = Field(
        (0.2, 0.6, 1.0),
        description="Temperatures of the grid; none = no baselines. The settings of `evaluate` and `sample` "
        "are always compared too (ours; P figure 2 varies T alone).",
    )
    top_k: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 20), min_length=1, description="Values of top-k in the grid, 0 = off (ours)."
    )
    top_p: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(
        (0.8, 1.0), min_length=1, description="Values of top-p in the grid (ours)."
    )
    samples_per_problem: int = Field(
        1, ge=1, le=1024, description="Completions per held-out problem at each point of the grid (ours)."
    )


class SandboxConfig(Section):
    """Limits of one generated program. Code runs under bubblewrap, else Landlock, or not at all."""

    execute: bool = Field(True, description="Run generated code; off: outcomes are not_run.")
    cpu_s: float = Field(2.0, gt=0.0, le=600.0, description="Processor seconds of one program.")
    memory_mib: int = Field(512, ge=64, description="Memory of one program, MiB.")
    workers: int = speed_only(2, "Programs run at once.", ge=1, le=256)


class MonitorConfig(Section):
    """When the loop stops itself."""

    action: Literal["stop", "warn"] = speed_only(
        "stop", "stop, or warn: record a stop and go on (a remedy is tried all the same)."
    )
    false_alarm_rate: float = Field(
        0.05,
        gt=0.0,
        lt=0.5,
        description="Chance that a healthy run of `horizon` rounds is stopped.",
    )
    horizon: int = Field(10, ge=1, le=1000, description="Rounds the false-alarm rate holds for.")
    margins: dict[MonitorName, Annotated[float, Field(ge=0.0)]] = Field(
        dict(MARGINS),
        description="Worsening that is tolerated, by monitor: NAME=NUMBER for some (collapse literature, "
        "section 7).",
    )
    seed_trainings: int = Field(
        0,
        ge=0,
        le=8,
        description="Extra trainings of the first round with other seeds (A/A), each trained, merged and "
        "measured: their spread goes into the errors (not of recycling, self-judgement and twin gap). 0: the "
        "false-alarm rate covers sampling noise only.",
    )
    second_look: int = Field(
        3,
        ge=0,
        le=16,
        description="Times a panel's samples that are drawn again before an alarm; 0 = no second look.",
    )
    remedy: Literal["none", "accumulate", "interpolate", "variants"] = Field(
        "none",
        description="Tried once where a run collapses without harm, before a stop: train on all rounds' "
        "samples from then on; go on halfway back to an earlier round (WiSE-FT, arXiv 2504.10478); or ask "
        "the training prompts in shuffled variants from then on (ours).",
    )
    futility_gain: Share = Field(
        0.005,
        description="Stop if two rounds in a row surely gain less held-out pass@1 than this over the best; "
        "0 = never (ours).",
    )
    degenerate_floor: Share = Field(
        0.05,
        description="Hard guard: share of cut, looping or unparsable held-out answers that is always "
        "tolerated; beyond it, three times round 0's odds (collapse literature, section 5.2 step 8).",
    )

    @field_validator("margins", mode="after")
    @classmethod
    def _every_monitor_has_a_margin(cls, value: dict[MonitorName, float]) -> dict[MonitorName, float]:
        return {**MARGINS, **value}


class TrackConfig(Section):
    """Weights & Biases; never stops the training."""

    mode: Literal["auto", "online", "offline", "disabled"] = speed_only(
        "auto", "auto: online when an API key is set, else offline."
    )
    project: str = speed_only("ssd_loop", "Project the run appears in.", min_length=1)
    price_per_device_hour: float = speed_only(
        0.0, "Money for one hour of the device, in any currency; 0 = unknown.", ge=0.0
    )


class EngineConfig(Section):
    """Where tokens come from."""

    name: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="auto: vLLM where it imports, else transformers."
    )
    device: Literal["auto", "cpu", "cuda"] = speed_only("auto", "auto: CUDA where present.")
    gpu_memory_utilization: float = speed_only(
        0.5, "Share of one GPU that vLLM takes while it samples.", gt=0.0, le=0.95
    )
    max_model_len: int = speed_only(2048, "Longest prompt plus completion, tokens.", ge=64)


class RunConfig(Section):
    """One experiment."""

    rounds: int = speed_only(5, "Rounds in total, counted from the first.", ge=1, le=1000)
    model: ModelConfig = ModelConfig()
    prompts: DataConfig = DataConfig()
    sample: SampleConfig = SampleConfig()
    filter: FilterConfig = FilterConfig()
    train: TrainConfig = TrainConfig()
    merge: MergeConfig = MergeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    sandbox: SandboxConfig = SandboxConfig()
    monitor: MonitorConfig = MonitorConfig()
    track: TrackConfig = TrackConfig()
    engine: EngineConfig = EngineConfig()

    @property
    def has_baselines(self) -> bool:
        """Whether base and best round are compared once a run ends; without run answers nothing is."""
        return bool(self.baselines.temperatures) and self.sandbox.execute

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        for name in EXECUTING:
            if name in self.filter.filters and not self.sandbox.execute:
                raise ValueError(f"filter.filters has {name}, which needs sandbox.execute")
        if self.monitor.remedy == "interpolate" and self.train.start_from == "base":
            raise ValueError(
                "monitor.remedy interpolate has nothing to act on where train.start_from is base"
            )
        if "minority" in self.filter.filters and self.sample.samples_per_prompt < 2:
            raise ValueError(
                "filter.filters has minority, which needs sample.samples_per_prompt of 2 or more"
            )
        longest = max(
            self.sample.max_new_tokens, self.evaluate.max_new_tokens, self.evaluate.reference_tokens
        )
        if longest >= self.engine.max_model_len:
            raise ValueError(
                f"{longest} tokens (sample.max_new_tokens, evaluate.max_new_tokens or "
                f"evaluate.reference_tokens) leave no room for a prompt in engine.max_model_len "
                f"{self.engine.max_model_len}"
            )
        return self


class DecideOptions(Section):
    """The settings that `decide RUN` has a use for."""

    monitor: MonitorConfig = MonitorConfig()


class EvaluateOptions(Section):
    """The settings that `evaluate MODEL` has a use for."""

    sample: SampleConfig = SampleConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    sandbox: SandboxConfig = SandboxConfig()
    engine: EngineConfig = EngineConfig()
    model: ModelConfig = ModelConfig()
