"""The parts an experiment's configuration is composed of; engine sections live in each engine's own file."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator

Precision = Literal["fp32", "fp16", "bf16", "fp8", "int8", "int4"]
DecodingStrategy = Literal["greedy", "sampling", "beam"]
BaselineKind = Literal["context", "bare", "loaded"]
WindowMode = Literal["auto", "saturated", "passes"]


def _refuse_lookalikes(value: Any) -> Any:
    """Keep `true` and "8" out of number fields: both are slips of the pen that pydantic would read as numbers."""
    if isinstance(value, bool | str):
        raise ValueError(f"must be a number, not {value!r}")  # noqa: TRY004  (pydantic wants ValueError)
    return value


Int = Annotated[int, BeforeValidator(_refuse_lookalikes)]
Float = Annotated[float, BeforeValidator(_refuse_lookalikes)]
Bool = Annotated[bool, Strict()]


class Part(BaseModel):
    """Base of every configuration model: frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


PRESETS: dict[str, dict[str, Any]] = {
    "deterministic": {"decoding_strategy": "greedy"},
    "standard": {"decoding_strategy": "sampling", "temperature": 1.0, "top_p": 0.95},
    "creative": {"decoding_strategy": "sampling", "temperature": 1.2, "top_p": 0.98, "top_k": 100},
    "factual": {"decoding_strategy": "sampling", "temperature": 0.3, "top_p": 0.9},
}


class DecoderConfig(Part):
    """How the next token is chosen."""

    decoding_strategy: DecodingStrategy = Field("greedy", description="How the next token is chosen.")
    temperature: Float = Field(1.0, ge=0, le=2, description="Softmax temperature, no unit; 0 means greedy.")
    top_p: Float = Field(1.0, ge=0, le=1, description="Nucleus probability mass, no unit; 1 is off.")
    top_k: Int | None = Field(None, ge=0, description="Number of most likely tokens kept; 0 or unset is off.")
    min_p: Float | None = Field(
        None, ge=0, le=1, description="Least probability relative to the most likely token, no unit."
    )
    repetition_penalty: Float = Field(
        1.0, ge=0.1, le=10, description="Divides the scores of tokens already seen, no unit; 1 is off."
    )
    num_beams: Int | None = Field(None, ge=2, le=64, description="Number of beams; only with strategy beam.")
    ignore_eos: Bool = Field(
        True,
        description="Go on past the end-of-sequence token, so that every configuration produces the same "
        "number of output tokens (controlled work).",
    )
    preset: Literal["deterministic", "standard", "creative", "factual"] | None = Field(
        None, description="Named set of values; values written beside it win."
    )

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("preset"), str) and data["preset"] in PRESETS:
            written = {k: v for k, v in data.items() if v is not None}
            return {**PRESETS[data["preset"]], **written}
        return data

    def check(self) -> None:
        """Raise ValueError for values that contradict each other; the experiment asks when it is their turn."""
        beam = self.decoding_strategy == "beam"
        if self.num_beams is not None and not beam:
            raise ValueError(
                f"num_beams: {self.num_beams} works only with decoding_strategy: beam, not {self.decoding_strategy}"
            )
        if beam and self.num_beams is None:
            raise ValueError("decoding_strategy: beam needs num_beams (2 or more)")
        idle = [k for k in SAMPLING_FIELDS if k in self.model_fields_set and getattr(self, k) not in (None, 1.0)]
        if beam and idle:
            raise ValueError(f"{', '.join(idle)} has no effect with decoding_strategy: beam; remove it")

    @property
    def is_greedy(self) -> bool:
        """True when the most likely token is always taken: strategy greedy, or sampling at temperature 0."""
        return self.decoding_strategy == "greedy" or (self.decoding_strategy == "sampling" and self.temperature == 0)


SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p")
"""Decoder fields that are dormant in greedy decoding: the engine does not get them and no hash holds them."""


class WarmupConfig(Part):
    """Work done before the window, so that caches, clocks and temperature have settled."""

    enabled: Bool = Field(True, description="Warm up before measuring; false makes the methodology `total`.")
    n_warmup: Int = Field(5, ge=1, le=1000, description="Number of warm-up passes (batches), full-length prompts.")
    max_output_tokens: Int = Field(32, ge=1, description="Output length of a warm-up request, tokens.")
    thermal_wait: Literal["adaptive", "fixed"] = Field(
        "adaptive",
        description="adaptive: settle under load, at least 20 s and at most the floor; fixed: wait exactly the "
        "floor, idle. Skipped without a GPU or without warm-up.",
    )
    thermal_floor_seconds: Float = Field(
        60.0,
        ge=0,
        le=3600,
        description="Upper bound (adaptive) or length (fixed) of the wait, s; 0 or >= 30.",
    )
    convergence_detection: Bool = Field(
        False, description="Go on past n_warmup until the latencies of the last passes agree."
    )
    window_size: Int = Field(5, ge=3, le=100, description="Latencies looked at for convergence, passes.")
    cv_threshold: Float = Field(
        0.05,
        ge=0.01,
        le=0.5,
        description="Coefficient of variation below which warm-up has converged, no unit.",
    )
    max_prompts: Int = Field(20, ge=5, le=1000, description="Most warm-up passes with convergence_detection.")

    @model_validator(mode="after")
    def _check(self) -> "WarmupConfig":
        if 0 < self.thermal_floor_seconds < 30:  # shorter waits measurably undo a warm-up (measurement.md §1)
            raise ValueError(
                f"thermal_floor_seconds: {self.thermal_floor_seconds:g} must be 0 (no wait) or at least 30"
            )
        return self


class BaselineConfig(Part):
    """The idle power that is subtracted to get adjusted joules."""

    enabled: Bool = Field(True, description="Measure idle power before the experiment.")
    duration_seconds: Float = Field(30.0, ge=5, le=120, description="Length of the idle measurement, s.")
    kind: BaselineKind = Field(
        "context",
        description="Which idle: bare (no process on the GPU), context (a CUDA context and nothing else), "
        "loaded (engine loaded and waiting).",
    )
    cache_ttl_seconds: Float = Field(
        3600.0, ge=0, description="How long a measured baseline may be used again, s; 0 measures each time."
    )


class MeasurementConfig(Part):
    """What the measured interval is."""

    window: WindowMode = Field(
        "auto",
        description="passes: whole passes of static batches; saturated: continuous batching with a queue that "
        "never empties; auto: what suits the backend.",
    )
    min_duration_seconds: Float | None = Field(
        None,
        ge=0,
        le=86400,
        description="Least length of the window, s; work goes round the prompts until reached. 0 = one pass. "
        "Unset: 60 with an energy source, one pass without.",
    )
    phase_split: Bool = Field(False, description="Also estimate joules per prefill and per decode token.")
    allow_dummy: Bool = Field(False, description="Accept dummy weights or constant prompts as valid energy.")
    sample_interval_ms: Float = Field(
        100.0, ge=10, le=10000, description="Pace of power, clocks, temperature and utilisation, ms."
    )


class OutputConfig(Part):
    """What is kept beside the numbers; not part of an experiment's identity."""

    save_text: Bool = Field(False, description="Keep prompts and generated text in the result.")
    raw_samples: Bool = Field(False, description="Keep the raw sensor ticks beside the 1 Hz series.")


class SyntheticPrompts(Part):
    """Prompts of exact length drawn by a seeded generator."""

    n: Int | None = Field(None, ge=1, description="Number of prompts drawn; unset: the experiment's n.")
    input_len: Int = Field(512, ge=1, description="Length of each prompt, tokens.")
    output_len: Int = Field(128, ge=1, description="Output length of each request, tokens.")
    seed: Int = Field(42, ge=0, description="Seed of the generator.")


class SyntheticDataset(Part):
    """A dataset that is generated instead of read."""

    synthetic: SyntheticPrompts = Field(description="Lengths and seed of the generated prompts.")


class LoraConfig(Part):
    """A low-rank adapter on top of the model."""

    adapter_id: str | None = Field(None, min_length=1, description="Hub id of the adapter.")
    adapter_path: str | None = Field(None, min_length=1, description="Local folder of the adapter.")
    merge_weights: Bool = Field(False, description="Merge the adapter into the weights after loading.")

    def check(self) -> None:
        """Raise ValueError unless there is exactly one adapter; the experiment asks when it is LoRA's turn."""
        if (self.adapter_id is None) == (self.adapter_path is None):
            raise ValueError("lora needs exactly one of adapter_id and adapter_path")


class GoodputConfig(Part):
    """Latency limits that a request must meet to count as good."""

    ttft_ms: Float | None = Field(None, gt=0, description="Limit of the time to first token, ms.")
    tpot_ms: Float | None = Field(None, gt=0, description="Limit of the time per output token, ms.")
    e2el_ms: Float | None = Field(None, gt=0, description="Limit of the end-to-end latency, ms.")


class TrafficConfig(Part):
    """Requests that arrive on a schedule of their own instead of being ready at once."""

    mode: Literal["poisson", "constant", "gamma", "trace"] = Field("poisson", description="Arrival process.")
    target_qps: Float | None = Field(None, gt=0, description="Offered rate, requests/s.")
    burstiness: Float | None = Field(None, gt=0, description="Shape of mode gamma, no unit; 1 is Poisson.")
    seed: Int | None = Field(None, ge=0, description="Seed of the arrivals; unset: from random_seed.")
    trace: str | None = Field(None, min_length=1, description="Trace file (JSONL: timestamp in ms, lengths).")
    duration_seconds: Float | None = Field(None, gt=0, description="Length of the schedule, s; unset: n requests.")
    max_concurrency: Int | None = Field(None, ge=1, description="Most requests under way at once.")
    goodput: GoodputConfig | None = Field(None, description="Latency limits for goodput.")

    @model_validator(mode="after")
    def _check(self) -> "TrafficConfig":
        if (self.mode == "trace") != (self.trace is not None):
            raise ValueError("traffic.trace and mode: trace belong together")
        if self.mode != "trace" and self.target_qps is None:
            raise ValueError(f"traffic.mode: {self.mode} needs target_qps (requests/s)")
        if self.burstiness is not None and self.mode != "gamma":
            raise ValueError(f"traffic.burstiness works only with mode: gamma, not {self.mode}")
        return self
