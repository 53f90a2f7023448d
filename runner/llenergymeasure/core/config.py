"""The configuration of one experiment and of a study; engine sections come from the registry.

A mapping becomes an `ExperimentConfig` here; `core.sweep` makes many mappings of one, `loaders` reads files.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, Field, create_model, field_validator, model_validator

from llenergymeasure.core import registry
from llenergymeasure.core.sections import (
    BaselineConfig,
    Bool,
    DecoderConfig,
    Float,
    Int,
    LoraConfig,
    MeasurementConfig,
    OutputConfig,
    Part,
    Precision,
    SyntheticDataset,
    TrafficConfig,
    WarmupConfig,
)

BUILTIN_PREFIX = "builtin:"
BUILTIN_DATASET = "builtin"
DEFAULT_DATASET = "aienergyscore"


def without_nulls(value: Any) -> Any:
    """Give `value` without the keys whose value is null, at every depth: null equals absent, as for kubectl."""
    if isinstance(value, Mapping):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return value


class _Energy(Part):
    """Where joules come from."""

    backend: str = "auto"

    @model_validator(mode="after")
    def _own_section(self) -> "_Energy":
        """Refuse another source's section; fill in the chosen one's, so that leaving it out says what defaults say."""
        for name in registry.energy_names():
            if name != self.backend and getattr(self, name, None) is not None:
                raise ValueError(
                    f"section {name} belongs to energy.backend {name}, but that is {self.backend}; "
                    f"remove the section or set backend: {name}"
                )
        settings = registry.energy_settings(self.backend) if self.backend in registry.energy_names() else None
        if settings is not None and getattr(self, self.backend) is None:
            object.__setattr__(self, self.backend, settings())
        return self


if TYPE_CHECKING:

    class EnergyConfig(_Energy):
        """Where joules come from."""
else:
    EnergyConfig = create_model(
        "EnergyConfig",
        __base__=_Energy,
        __doc__="Where joules come from.",
        backend=(
            Literal[("auto", *registry.energy_names(), "none")],
            Field(
                "auto",
                description="Source of joules; auto takes the first that works of "
                f"{', '.join(registry.energy_auto_order())}; none measures no energy.",
            ),
        ),
        **{
            name: (settings | None, Field(None, description=f"Settings of energy source {name}."))
            for name in registry.energy_names()
            if (settings := registry.energy_settings(name)) is not None
        },
    )


class _Experiment(Part):
    """One configuration of one model on one backend: what is measured, completely."""

    model: str = Field(
        min_length=1,
        max_length=500,
        description="Model to measure: a hub id, a local folder, or builtin:smollm2-135m.",
    )
    revision: str | None = Field(None, min_length=1, description="Hub revision (branch, tag or commit).")
    backend: str = Field("pytorch", description="Inference engine; a sweep names its own, unless its keys imply one.")
    precision: Precision = Field("bf16", description="Number format of the weights and activations.")
    dataset: str | SyntheticDataset = Field(
        "",
        description="Prompts: aienergyscore, builtin, a path to a .jsonl file, or {synthetic: {...}}. Unset: "
        "builtin for a builtin model, else aienergyscore.",
    )
    n: Int = Field(100, ge=1, description="Number of prompts, the first n in file order.")
    random_seed: Int = Field(42, ge=0, le=2**32 - 1, description="Seed of python, numpy, torch and sampling.")
    max_input_tokens: Int = Field(512, ge=0, description="Longer prompts are cut to this, tokens; 0 = no limit.")
    max_output_tokens: Int = Field(128, ge=1, description="Output length of a request, tokens.")
    decoder: DecoderConfig = Field(DecoderConfig(), description="How the next token is chosen.")
    warmup: WarmupConfig = Field(WarmupConfig(), description="Work before the window.")
    baseline: BaselineConfig = Field(BaselineConfig(), description="Idle power that is subtracted.")
    energy: EnergyConfig = Field(EnergyConfig(), description="Where joules come from.")
    measurement: MeasurementConfig = Field(MeasurementConfig(), description="What the measured interval is.")
    output: OutputConfig = Field(OutputConfig(), description="What is kept beside the numbers; not hashed.")
    lora: LoraConfig | None = Field(None, description="Low-rank adapter.")
    traffic: TrafficConfig | None = Field(
        None, description="Arrival schedule; not supported yet: a run refuses it. Unset: all requests at once."
    )
    passthrough_kwargs: dict[str, Any] | None = Field(
        None, description="Handed to the engine's constructor as is; no key may be a field of llem."
    )

    @model_validator(mode="before")
    @classmethod
    def _tidy(cls, data: Any) -> Any:
        """Drop nulls and a `version:` key, which is tolerated."""
        return without_nulls({**data, "version": None}) if isinstance(data, Mapping) else data

    @field_validator("backend")
    @classmethod
    def _known_backend(cls, value: str) -> str:
        if value not in registry.backend_names():
            raise ValueError(f"must be one of {', '.join(registry.backend_names())}, not {value!r}")
        return value

    @model_validator(mode="after")
    def _check(self) -> "_Experiment":
        """Check what no single field can know, in the documented order, and resolve what depends on others."""
        self._check_support()
        self._check_sections()
        self.decoder.check()
        self._check_lora()
        self._check_passthrough()
        self._check_lengths()
        if not self.dataset:
            default = BUILTIN_DATASET if self.model.startswith(BUILTIN_PREFIX) else DEFAULT_DATASET
            object.__setattr__(self, "dataset", default)
        return self

    def _check_support(self) -> None:
        precisions = registry.precision_support()[self.backend]
        if self.precision not in precisions:
            raise ValueError(
                f"precision {self.precision} is not supported by backend {self.backend}; "
                f"it supports {', '.join(precisions)}"
            )
        strategies = registry.decoding_support()[self.backend]
        if self.decoder.decoding_strategy not in strategies:
            raise ValueError(
                f"decoding_strategy {self.decoder.decoding_strategy} is not supported by backend "
                f"{self.backend}; it supports {', '.join(strategies)}"
            )

    def _check_sections(self) -> None:
        for name in registry.backend_names():
            if name != self.backend and getattr(self, name) is not None:
                raise ValueError(
                    f"section {name} belongs to backend {name}, but backend is {self.backend}; "
                    f"remove the section or set backend: {name}"
                )
        section = getattr(self, self.backend) or registry.backend_settings(self.backend)()
        completed = registry.completed(self.backend, section, precision=self.precision, lora=self.lora is not None)
        object.__setattr__(self, self.backend, completed)  # resolved before hashing, whoever wrote it

    def _check_lora(self) -> None:
        advice = registry.lora_support()[self.backend]
        if self.lora is not None and advice:
            raise ValueError(f"lora is not supported by backend {self.backend}: {advice}")
        if self.lora is not None:
            self.lora.check()

    def _check_passthrough(self) -> None:
        declared = {*type(self).model_fields, *type(self.section).model_fields}
        clash = sorted(declared & set(self.passthrough_kwargs or ()))
        if clash:
            raise ValueError(
                f"passthrough_kwargs: {', '.join(clash)} is a field of llem; set it there instead of passing it through"
            )

    def _check_lengths(self) -> None:
        if isinstance(self.dataset, SyntheticDataset):
            spec = self.dataset.synthetic
            if 0 < self.max_input_tokens < spec.input_len:
                raise ValueError(
                    f"dataset.synthetic.input_len: {spec.input_len} is above max_input_tokens: "
                    f"{self.max_input_tokens}; raise max_input_tokens or shorten the prompts"
                )
            if spec.n is not None and spec.n < self.n:
                raise ValueError(f"dataset.synthetic.n: {spec.n} is below n: {self.n}; raise it or leave it out")

    @property
    def section(self) -> BaseModel:
        """The settings of this experiment's own backend; never None after validation."""
        return cast("BaseModel", getattr(self, self.backend))


if TYPE_CHECKING:

    class ExperimentConfig(_Experiment):
        """One configuration of one model on one backend: what is measured, completely."""

        def __init__(self, **fields: Any) -> None: ...
else:
    ExperimentConfig = create_model(
        "ExperimentConfig",
        __base__=_Experiment,
        __doc__=_Experiment.__doc__,
        __module__=__name__,
        **{
            name: (
                registry.backend_settings(name) | None,
                Field(None, description=f"Settings of backend {name}; a value left out is the engine's default."),
            )
            for name in registry.backend_names()
        },
    )


CycleOrder = Literal["sequential", "interleaved", "shuffled", "latin_square"]


class ExecutionConfig(Part):
    """How often and in which order a study's experiments run; not part of any identity."""

    n_cycles: Int = Field(1, ge=1, le=1000, description="Repetitions of the whole set; a study that names none has 3.")
    cycle_order: CycleOrder = Field(
        "shuffled",
        description="Order of runs: sequential AAABBB, interleaved ABABAB, shuffled (a new permutation in every "
        "cycle), latin_square (balanced for carry-over).",
    )
    shuffle_seed: Int | None = Field(None, ge=0, description="Seed of shuffled; unset: from the design hash.")
    config_gap_seconds: Float | None = Field(
        None,
        ge=0,
        le=86400,
        description="Pause between runs, s; unset: user config, 0 without an energy source.",
    )
    cycle_gap_seconds: Float | None = Field(
        None,
        ge=0,
        le=86400,
        description="Pause between cycles, s; unset: user config, 0 without an energy source.",
    )
    experiment_timeout_seconds: Float = Field(
        3600.0, gt=0, description="Limit of one run from engine load to result, s."
    )
    phase_timeouts: dict[Literal["download", "engine_build"], Float] = Field(
        default_factory=dict, description="Limits of download and engine_build, s; unset: none."
    )
    max_consecutive_failures: Int = Field(
        10, ge=0, description="After this many failures in a row one probe, then stop; 0 is off."
    )
    deduplicate: Bool = Field(True, description="Keep equal experiments once; false runs them as extra cycles.")


RUNNER_VALUES = "local, docker, docker:<image>, kubernetes, auto"


def check_runner(value: str) -> str:
    """Give a runner value back if it is one; raises ValueError that lists the valid ones."""
    if value.startswith("singularity"):
        raise ValueError(f"runner {value!r} is not supported in 2.0; valid: {RUNNER_VALUES}")
    if value in ("local", "docker", "kubernetes", "auto") or (value.startswith("docker:") and len(value) > 7):
        return value
    raise ValueError(f"runner {value!r} is unknown; valid: {RUNNER_VALUES}")


Runner = Annotated[str, BeforeValidator(lambda v: check_runner(v) if isinstance(v, str) else v)]


class SkippedCombination(Part):
    """A point of a sweep that is not a valid experiment."""

    config: dict[str, Any] = Field(description="The combination as generated.")
    reason: str = Field(description="Why it was refused.")


class StudyConfig(Part):
    """A resolved study: its unique experiments and how they are run."""

    name: str = Field("study", min_length=1, max_length=200, description="Name of the study.")
    experiments: tuple[ExperimentConfig, ...] = Field(min_length=1, description="The unique experiments, in order.")
    repeats: tuple[int, ...] = Field((), description="Extra cycles per experiment when duplicates are kept.")
    execution: ExecutionConfig = Field(ExecutionConfig(), description="How often and in which order.")
    skipped: tuple[SkippedCombination, ...] = Field((), description="Combinations refused at expansion.")
    notices: tuple[str, ...] = Field((), description="What expansion wants the user to know.")
    runners: dict[str, Runner] = Field(default_factory=dict, description="Runner per backend.")
    images: dict[str, str] = Field(default_factory=dict, description="Container image per backend.")
