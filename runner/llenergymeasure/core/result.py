"""The record of one experiment and of a study: quantities carry their unit, null means not measured, with a reason."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from llenergymeasure.core.comparison import QuantityComparison
from llenergymeasure.core.conditions import Conditions
from llenergymeasure.core.cross_check import CrossCheck
from llenergymeasure.core.occupancy import Occupancy
from llenergymeasure.core.phase_split import PhaseSplit
from llenergymeasure.core.records import Record
from llenergymeasure.core.rows import run_columns, single_values, study_rows, values_of
from llenergymeasure.core.statistics import Statistic, percentile
from llenergymeasure.core.tables import arrow_table, data_frame
from llenergymeasure.core.uncertainty import Uncertainty
from llenergymeasure.core.verdict import Verdict, sum_problem

SCHEMA_VERSION = "2.0"


class Phase(Record):
    """One phase of the experiment; seconds from the start of the process' work."""

    start_s: float
    end_s: float


class LatencyStatistics(Record):
    """Latencies in ms; `mode` says what one sample is.

    per_request_batch: a batch of requests; per_request: a request among others that ran beside it (saturated windows).
    """

    mode: Literal["true_streaming", "per_request_batch", "per_request", "proportional_estimate"]
    samples: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float


class IdleAsRead(Record):
    """Idle power of one GPU as its sensor read it, W: mean, standard deviation of `samples` parts, drift."""

    power_w: float
    spread_w: float | None = None
    samples: int | None = None
    drift_w: float | None = None


class EnergyBreakdown(Record):
    """Joules before and after the idle power is taken off.

    Of the idle power: `drift` is its movement over the recording, null with a `drift_reason`, and then whether it was
    `stable` is null, too; `spot` is what a short look before this run found, `settings` a digest per GPU of the driver,
    limits, clocks and modes that it holds for, `as_read` per GPU what a later run may take: it calibrates that itself.
    """

    raw_j: float | None = None
    adjusted_j: float | None = None
    baseline_power_w: float | None = None
    baseline_per_device_w: dict[str, float] | None = None
    baseline_kind: str | None = None
    baseline_method: Literal["fresh", "cached", "validated", "unavailable"] = "unavailable"
    from_cache: bool = False
    baseline_timestamp: datetime | None = None
    baseline_cache_age_s: float | None = None
    baseline_std_uncertainty_w: float | None = None
    baseline_drift_w: float | None = None
    baseline_drift_reason: str | None = None
    baseline_stable: bool | None = None
    baseline_temperature_c: float | None = None
    baseline_spot_w: float | None = None
    baseline_settings: dict[str, str] | None = None
    baseline_as_read: dict[str, IdleAsRead] | None = None


class FlopsResult(Record):
    """Floating point operations of the window: 2 x non-embedding parameters x tokens; attention comes on top."""

    value: float | None
    method: str
    confidence: Literal["high", "medium", "low"]
    precision: str
    attention_flops: float | None = None
    reason: str | None = None


class WarmupResult(Record):
    """How the warm-up went; latencies per pass in ms; `converged` null: that was not tested."""

    converged: bool | None
    final_cv: float | None
    iterations_completed: int
    target_cv: float
    max_prompts: int
    latencies_ms: list[float]


class SettleResult(Record):
    """How the GPU was brought to the state of the work before the window; `settled` None: nothing was waited for.

    `power_drift` compares the mean power of the last 10 s with the 10 s before, as a fraction;
    `temperature_change_c` is the largest movement of a GPU's temperature in the last 20 s.
    """

    settled: bool | None = None
    seconds: float = 0.0
    power_drift: float | None = None
    temperature_change_c: float | None = None
    reason: str = ""


class WorkResult(Record):
    """How the window's work was fed: requests that could run at once, and ran on average; W of measurement.md §3.

    `itl_s` is the mean time between a request's tokens where tokens at an edge are known by that alone; null where the
    window holds whole requests.
    """

    concurrency: int | None = None
    mean_running: float | None = None
    preemptions: int | None = None
    imbalance: float = 0.0
    itl_s: float | None = None


class Sensor(Record):
    """One GPU's energy counter: what the recording showed of it, how the window was cut, what corrected it.

    `period_s` is the median distance of its ticks, `jitter_s` the standard deviation of a tick's moment in this run, or
    its upper limit if `jitter_hidden` by the width of the readings, `jitter_used_s` the one in the uncertainty of the
    edges. `lag_s` is what a self-test found, null with a `lag_reason`. `power_before_w` and `power_after_w` are the
    mean powers of the guards around the window, in which the engine waited.
    """

    period_s: float | None = None
    jitter_s: float | None = None
    jitter_hidden: bool | None = None
    jitter_used_s: float | None = None
    jitter_source: str | None = None
    reading_width_s: float | None = None
    call_s: float | None = None
    lag_s: float | None = None
    lag_reason: str | None = None
    ticks: int | None = None
    sampler_processor_share: float | None = None
    edges: str | None = None
    power_before_w: float | None = None
    power_after_w: float | None = None
    gain: float | None = None
    offset_w: float | None = None


class ThermalResult(Record):
    """Throttling seen in the window; None where no sensor told."""

    detected: bool | None = None
    sw_power_cap: bool | None = None
    hw_slowdown: bool | None = None
    sw_thermal: bool | None = None
    hw_thermal: bool | None = None
    power_brake: bool | None = None
    throttle_duration_s: float | None = None
    max_temperature_c: float | None = None


class GeneratedText(Record):
    """One prompt of the window and what came out."""

    request: int
    prompt: str | None
    output: str


class ExperimentResult(Record):
    """Everything known about one run of one experiment."""

    schema_version: str = SCHEMA_VERSION
    tool_version: str | None = None
    experiment_id: str
    measurement_config_hash: str
    model: str
    backend: str
    backend_version: str | None = None
    model_revision: str | None = None
    lora_adapter_id: str | None = None
    lora_merged: bool | None = None
    dataset_sha256: str | None = None
    effective_config: dict[str, Any] = Field(default_factory=dict)
    engine_effective: dict[str, Any] = Field(default_factory=dict)
    parameter_provenance: dict[str, str] = Field(default_factory=dict)

    measurement_methodology: Literal["total", "steady_state", "windowed"]
    steady_state_window: tuple[float, float] | None = None
    window_mode: str | None = None
    phases: dict[str, Phase] = Field(default_factory=dict)

    input_tokens: int
    output_tokens: int
    total_tokens: int
    requests: int
    request_input_tokens: list[int] = Field(default_factory=list)
    request_output_tokens: list[int] = Field(default_factory=list)
    ignore_eos: bool | None = None

    energy_source: str | None = None
    energy_kind: str | None = None
    energy_total_j: float | None = None
    energy_adjusted_j: float | None = None
    baseline_power_w: float | None = None
    energy_per_device_j: dict[str, float] | None = None
    energy_breakdown: EnergyBreakdown = EnergyBreakdown()
    energy_per_output_token_j: float | None = None
    energy_adjusted_per_output_token_j: float | None = None
    energy_per_total_token_j: float | None = None
    energy_per_request_j: float | None = None
    tokens_per_joule: float | None = None
    tokens_per_second_per_watt: float | None = None
    mean_power_w: float | None = None
    host_energy_j: float | None = None
    energy_uncalibrated_j: float | None = None
    loaded_idle_power_w: float | None = None
    uncertainty: Uncertainty = Uncertainty()
    cross_check: CrossCheck | None = None
    phase_split: PhaseSplit | None = None
    verdict: Verdict
    conditions: Conditions = Conditions()
    occupancy: Occupancy = Occupancy()
    sensors: dict[str, Sensor] | None = None
    work: WorkResult = WorkResult()

    duration_s: float
    tokens_per_second: float
    total_tokens_per_second: float
    requests_per_second: float
    latency: LatencyStatistics | None = None
    memory_model_mb: float | None = None
    memory_peak_mb: float | None = None
    memory_total_mb: float | None = None

    flops: FlopsResult | None = None
    warmup: WarmupResult | None = None
    warmup_excluded_samples: int = 0
    settle: SettleResult | None = None
    thermal: ThermalResult = ThermalResult()

    environment_snapshot: dict[str, Any] = Field(default_factory=dict)
    measurement_warnings: list[str] = Field(default_factory=list)
    reproducibility_notes: list[str] = Field(default_factory=list)
    null_reasons: dict[str, str] = Field(default_factory=dict)
    co2_estimate_g: float | None = None
    timeseries: str | None = None
    texts: list[GeneratedText] | None = None
    start_time: datetime
    end_time: datetime
    synthetic: bool = False
    random_weights: bool = False

    @model_validator(mode="before")
    @classmethod
    def _saturated_latencies_are_of_requests(cls, stored: Any) -> Any:
        """Saturated windows always timed requests; before there was a word for that they were stored as batches."""
        if isinstance(stored, dict) and stored.get("window_mode") == "saturated":
            latency = stored.get("latency")
            if isinstance(latency, dict) and latency.get("mode") == "per_request_batch":
                return {**stored, "latency": {**latency, "mode": "per_request"}}
        return stored

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if problem := sum_problem(self.energy_per_device_j, self.energy_total_j):
            raise ValueError(problem)
        return self

    def to_parquet(self, path: Path) -> None:
        """Write the scalar quantities as one row, units in the column names and in the fields' metadata."""
        import pyarrow.parquet as pq

        pq.write_table(arrow_table([scalars(self)], single_values(ExperimentResult)), path)


def scalars(result: ExperimentResult) -> dict[str, Any]:
    """The plain quantities of a result as one flat row, nested groups dotted; texts, lists and snapshots left out."""
    return values_of(result, single_values(ExperimentResult))


class ExperimentStatistics(Record):
    """One experiment over its cycles."""

    config_hash: str
    summary: str
    cycles_completed: int
    verdicts: dict[str, int]
    statistics: dict[str, Statistic]


class FailedRun(Record):
    """A run without a result."""

    index: int
    cycle: int
    config_hash: str
    summary: str
    error_type: str | None = None
    error_message: str | None = None


class StudyResult(Record):
    """What came of a study; `result_files` are paths relative to the study's folder, as are all paths here."""

    schema_version: str = SCHEMA_VERSION
    name: str
    study_design_hash: str
    directory: str | None = None
    measurement_protocol: dict[str, Any] = Field(default_factory=dict)
    result_files: list[str] = Field(default_factory=list)
    summary: dict[str, int] = Field(default_factory=dict)
    experiments: list[ExperimentStatistics] = Field(default_factory=list)
    skipped: list[dict[str, Any]] = Field(default_factory=list)
    failed: list[FailedRun] = Field(default_factory=list)
    comparisons: list[QuantityComparison] = Field(default_factory=list)

    def to_dataframe(self) -> Any:
        """A pandas.DataFrame with a row per run that has a result or failed, and the columns of an exported table.

        Raises:
            BackendMissingError: pandas is not installed.
            ResultStoreError: The result files are not on this machine.

        """
        return data_frame(study_rows(self, ExperimentResult), run_columns(ExperimentResult))


JUDGED = ("energy_per_output_token_j", "energy_adjusted_per_output_token_j", "mean_power_w")
"""Quantities that only valid cycles have a say in; estimated ones are described where there is no valid one."""


def quantity(result: ExperimentResult, name: str) -> float | None:
    """A quantity of a result by its name, dots reach inside; None if it was not measured."""
    value: Any = result
    for part in name.split("."):
        value = getattr(value, part, None)
    return None if value is None else float(value)


def latency_statistics(values_ms: Sequence[float], *, of_batches: bool = True) -> LatencyStatistics | None:
    """Statistics of the latencies of batches, or of requests that ran side by side; None without any."""
    if not values_ms:
        return None
    ordered = sorted(values_ms)
    return LatencyStatistics(
        mode="per_request_batch" if of_batches else "per_request",
        samples=len(ordered),
        mean_ms=fmean(ordered),
        p50_ms=percentile(ordered, 0.50),
        p90_ms=percentile(ordered, 0.90),
        p95_ms=percentile(ordered, 0.95),
        p99_ms=percentile(ordered, 0.99),
        min_ms=ordered[0],
        max_ms=ordered[-1],
    )
