"""What an engine and a source of joules must offer, and the plain records that pass between them and `measure`.

All instants are seconds of CLOCK_MONOTONIC (`time.monotonic()`), which processes of one Linux host share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from llenergymeasure.core.config import ExperimentConfig
    from llenergymeasure.core.energy_series import EnergySeries
    from llenergymeasure.core.errors import LLEMError


@dataclass(frozen=True)
class Prompt:
    """One request: text or ready token ids, and its own output length if the dataset names one (tokens)."""

    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Request:
    """One tokenised prompt as an engine runs it; lengths in tokens."""

    index: int
    token_ids: tuple[int, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Generation:
    """What one batch produced: per request the useful tokens (never padding, never past its own end).

    `output_token_ids` has one tuple per request, in the order given. `start_s`/`end_s` enclose the work with the
    device synchronised on both sides. `first_token_s` is when every request of the batch had its first token, the end
    of the prefill; None where the engine was not asked.
    """

    requests: tuple[Request, ...]
    output_token_ids: tuple[tuple[int, ...], ...]
    start_s: float
    end_s: float
    first_token_s: float | None = None

    @property
    def input_tokens(self) -> int:
        """Prompt tokens of the batch, without padding."""
        return sum(len(r.token_ids) for r in self.requests)

    @property
    def output_tokens(self) -> int:
        """Generated tokens of the batch, each sequence up to its own end."""
        return sum(len(ids) for ids in self.output_token_ids)


@dataclass(frozen=True)
class Weights:
    """Where a model's files are and what is known of them; `path` is a folder that an engine can load."""

    name: str
    path: Path
    source: str  # builtin | local | hub | none
    revision: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)  # the model's config.json
    random_weights: bool = False


@dataclass(frozen=True)
class ModelFacts:
    """What a loaded engine knows of its model; counts are numbers of weights, None where it cannot tell."""

    parameters: int | None
    embedding_parameters: int | None
    layers: int | None = None
    hidden_size: int | None = None
    context_length: int | None = None
    memory_model_mb: float | None = None  # MiB of device memory after load
    dtype: str | None = None
    device: str = "cpu"
    gpu_positions: tuple[int, ...] | None = None  # places among the visible GPUs that hold weights; None: unknown


@dataclass(frozen=True)
class Device:
    """One GPU of this run; `index` is NVML's, `uuid` its identity everywhere else."""

    index: int
    uuid: str
    name: str = "unknown"


Edges = Literal["quiet", "loaded"]
"""How a window begins and ends: with the engine waiting for a second on both sides, or in the middle of its load."""

QUIET_LEAST_S, QUIET_TICKS = 1.0, 8
"""How long an engine waits on each side of a quiet window: at least a second, and this many ticks."""


@dataclass(frozen=True)
class Reading:
    """One sample of a device's sensors at `t_s`; None where the sensor gave nothing or is read at a slower pace.

    `power_w` is nvmlDeviceGetPowerUsage's answer or, where the card has it, the same as `power_average_w`.
    """

    t_s: float
    gpu_uuid: str
    gpu_index: int
    power_w: float | None = None
    power_average_w: float | None = None  # field 185: mean of the last second
    power_instant_w: float | None = None  # field 186: sees 25 ms of each 100 ms on an H100 (measurement.md §1)
    temperature_c: float | None = None
    memory_used_mb: float | None = None
    memory_total_mb: float | None = None
    sm_utilisation_pct: float | None = None
    sm_clock_mhz: float | None = None
    mem_clock_mhz: float | None = None
    throttle_reasons: int | None = None  # bit set of nvmlDeviceGetCurrentClocksEventReasons


@dataclass(frozen=True)
class PowerSample:
    """One entry of the driver's own sample buffer: total board power in W at `t_s`."""

    t_s: float
    power_w: float


@dataclass(frozen=True)
class Occupants:
    """Who used a GPU at `t_s`; None where the driver does not tell.

    `compute_pids` and `graphics_pids` are the driver's process lists as seen from here (in a pod: only its own),
    `busy_pids` those with SM utilisation since the last look (host pids, also of processes outside a pod).
    """

    t_s: float
    gpu_uuid: str
    compute_pids: tuple[int, ...] | None = None
    graphics_pids: tuple[int, ...] | None = None
    busy_pids: tuple[int, ...] | None = None
    memory_used_mb: float | None = None  # MiB, without what the driver reserves where it tells that
    listed_memory_mb: float | None = None  # MiB of all listed compute processes; None if it is not told for each


@dataclass(frozen=True)
class ThrottleCounters:
    """Time since driver load that a GPU spent slowed down, by cause, ns; None where the driver does not count it."""

    t_s: float
    gpu_uuid: str
    sw_power_cap_ns: int | None = None
    sw_thermal_ns: int | None = None
    hw_thermal_ns: int | None = None
    power_brake_ns: int | None = None


@dataclass(frozen=True)
class Window:
    """A named interval [start_s, end_s]."""

    name: str
    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Work:
    """How the window's work was fed, and how well that went.

    `itl_s` is the mean time between a request's tokens, needed where tokens at an edge are known by their request's
    times only; it is None where the window holds whole requests and so no token is in doubt.
    """

    mode: Literal["passes", "saturated"] = "passes"
    concurrency: int | None = None  # requests that the engine can run at once, C
    mean_running: float | None = None  # requests running, mean over the window
    preemptions: int | None = None
    imbalance: float = 0.0  # W: prefilled share of the planned work less the decoded share, a fraction
    itl_s: float | None = None
    edges: Edges = "quiet"
    input_tokens: int | None = None  # prefilled inside the window, where that is not the sum over its requests
    output_tokens: int | None = None  # decoded inside it, likewise


@dataclass(frozen=True)
class DeviceEnergy:
    """Joules of one device in one window with their standard uncertainty (J); `joules` None needs a `reason`.

    `edges` says how the ends were cut: quiet, loaded, or interpolated where a quiet edge turned out not to be quiet.
    `power_before_w` and `power_after_w` are the mean powers of the guards around a quiet window: the loaded idle, the
    first with its standard uncertainty (W) as its ticks scatter.
    """

    gpu_uuid: str
    joules: float | None
    std_uncertainty_j: float | None = None
    reason: str | None = None
    edges: Literal["quiet", "loaded", "interpolated"] | None = None
    power_before_w: float | None = None
    power_after_w: float | None = None
    power_before_std_w: float | None = None


@dataclass(frozen=True)
class SensorFacts:
    """What a recording showed of one GPU's energy counter, and what the recording cost."""

    period_s: float | None  # median distance of ticks
    jitter_s: float | None  # standard deviation of a tick's moment, from these ticks, or its upper limit
    jitter_used_s: float  # the one in the uncertainty of the edges
    jitter_source: Literal["self-test", "default"]
    lag_s: float | None  # how late it shows the end of a load; None where no self-test has told
    reading_width_s: float | None  # median time from the last old to the first new reading
    call_s: float | None  # median wall time of a counter call
    ticks: int
    sampler_processor_share: float | None  # of one core inside the main window, the whole recorder (all GPUs)
    jitter_hidden: bool = False  # by the readings' width, so that `jitter_s` is the upper limit
    lag_reason: str | None = None  # why `lag_s` is None


@dataclass(frozen=True)
class EnergyRecord:
    """All that an energy source recorded: device energy per window name, sensor readings, counter series."""

    windows: Mapping[str, tuple[DeviceEnergy, ...]]
    readings: tuple[Reading, ...] = ()
    series: Mapping[str, "EnergySeries"] = field(default_factory=dict)  # by GPU UUID
    samples: Mapping[str, tuple[PowerSample, ...]] = field(default_factory=dict)  # by GPU UUID
    occupants: tuple[Occupants, ...] = ()
    throttle: tuple[ThrottleCounters, ...] = ()
    sensors: Mapping[str, SensorFacts] = field(default_factory=dict)  # by GPU UUID
    host_energy_j: float | None = None  # of the window "window"; never part of the device energy
    independent: bool = False  # the windows were not cut out of `series`, so these can check each other
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Availability:
    """Whether a plug-in can work here; `reason` says why not, `fix` what to do about it."""

    ok: bool
    reason: str = ""
    fix: str = ""


class Clock(Protocol):
    """What tells time and lets it pass, s: the module `time`, or one that pretends."""

    def monotonic(self) -> float:
        """Give the instant now."""

    def sleep(self, seconds: float, /) -> None:
        """Let time pass."""


class EnergyBackend(Protocol):
    """A source of joules for a set of devices.

    Life: `availability()` → `start()` → any number of `open_window`/`close_window` pairs → `stop()`.
    `KIND` is "counter" (joules counted by the device), "estimate" or "simulated".
    """

    NAME: ClassVar[str]
    KIND: ClassVar[str]

    def availability(self) -> Availability:
        """Say whether this source can measure here, without side effects."""

    def devices(self) -> tuple[Device, ...]:
        """List the devices that this process may use."""

    def start(self, devices: Sequence[Device], *, interval_s: float) -> None:
        """Begin recording; `interval_s` is the pace of power, clocks and temperature."""

    def open_window(self, name: str) -> float:
        """Mark the start of a window, give its instant (s); the device is synchronised by the caller."""

    def close_window(self, name: str, edges: Edges = "loaded") -> float:
        """Mark the end of a window, give its instant (s); `edges` says what surrounds it."""

    def attend(self) -> None:
        """An edge is near: record every tick, until some time after the window named `window` opens (again).

        To be called about two seconds before the edge of a loaded window, and before anything that is judged tick by
        tick; a quiet window needs it where its first guard begins. Windows of other names are recorded wholly.
        """

    def guard_s(self) -> float:
        """How long the engine must wait on each side of a quiet window, s; 0 where nothing is cut at ticks."""

    def mean_power_w(self, start_s: float, end_s: float) -> float | None:
        """Mean power of all devices so far recorded in the interval, or None if this source cannot tell yet."""

    def stop(self) -> EnergyRecord:
        """End recording and give everything; raises MeasurementError if the sensor failed inside a window."""


class InferenceEngine(Protocol):
    """A loaded model that turns batches of requests into tokens."""

    NAME: ClassVar[str]

    def check(self, config: "ExperimentConfig") -> list["LLEMError"]:
        """Name everything that would keep this configuration from running here, without loading the model."""

    def load(self, config: "ExperimentConfig", weights: Weights) -> ModelFacts:
        """Load the model; raises OutOfMemoryError, BackendError or BackendMissingError."""

    def seed(self, value: int) -> None:
        """Seed every generator that sampling draws from."""

    def tokenise(self, prompts: Sequence[Prompt], *, max_input_tokens: int) -> list[tuple[int, ...]]:
        """Turn prompts into token ids, cut to `max_input_tokens` (0 = no limit)."""

    def batches(self, requests: Sequence[Request]) -> list[tuple[Request, ...]]:
        """Cut one pass over the requests into the batches that `generate` takes; every batch is full."""

    def generate(self, batch: Sequence[Request]) -> Generation:
        """Run one batch to its end, the device synchronised before and after."""

    def detokenise(self, token_ids: Sequence[int]) -> str:
        """Turn output tokens into text."""

    def memory_peak_mb(self) -> float | None:
        """Peak device memory since the last call to `reset_memory_peak`, in MiB; None without a device."""

    def reset_memory_peak(self) -> None:
        """Start a new peak."""

    def effective(self) -> dict[str, Any]:
        """The values that were in force, also those that the engine chose, for the result's record."""

    def version(self) -> str:
        """Version of the library."""

    def close(self) -> None:
        """Free the model and the device's memory."""


@dataclass(frozen=True)
class Finished:
    """A request that a continuously batching engine has ended, s; `started_s`: when it left the queue."""

    request: Request
    output_token_ids: tuple[int, ...]
    started_s: float
    first_token_s: float
    last_token_s: float

    def tokens_until(self, t_s: float) -> float:
        """Output tokens that were there at `t_s`, evenly spaced between first and last (measurement.md §4)."""
        count = len(self.output_token_ids)
        if t_s < self.first_token_s:
            return 0.0
        if t_s >= self.last_token_s:
            return float(count)
        share = (t_s - self.first_token_s) / (self.last_token_s - self.first_token_s)
        return 1 + (count - 1) * share


class ContinuousEngine(InferenceEngine, Protocol):
    """An engine that takes requests into its running batch as others end."""

    def capacity(self) -> int:
        """Requests that can run at once: its limit, or what its cache admits."""

    def submit(self, request: Request) -> None:
        """Put a request at the end of the queue."""

    def step(self) -> list[Finished]:
        """Go on until something has happened; gives the requests that ended by it, in order. Empty queue: nothing."""

    def running(self) -> int:
        """Requests that are being worked on."""

    def waiting(self) -> int:
        """Requests in the queue."""

    def decoded(self) -> int | None:
        """Output tokens that were produced since the engine was loaded; None if it tells a request's times only."""

    def preemptions(self) -> int:
        """How often a running request was put back since the engine was loaded."""


@runtime_checkable
class PhaseTiming(Protocol):
    """What an engine of static batches offers beside, if it can tell prefill from decode."""

    def generate_timed(self, batch: Sequence[Request]) -> Generation:
        """Like `generate`, with `first_token_s`; observing may cost time, so never inside the measured window."""
