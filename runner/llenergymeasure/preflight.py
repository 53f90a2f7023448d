"""Checks everything a configuration needs before anything is loaded; collects all failures, each with its fix."""

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llenergymeasure import datasets, flops, models
from llenergymeasure.core import registry
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Device, EnergyBackend
from llenergymeasure.core.errors import (
    BackendMissingError,
    ConfigError,
    HardwareError,
    LLEMError,
    PreFlightError,
)
from llenergymeasure.nvml_sampling import counter_that_stands_still, nvml, visible_devices
from llenergymeasure.user_config import UserConfig, cache_dir

MIN_CAPABILITY = {"bf16": (8, 0), "fp8": (8, 9)}
"""Least CUDA compute capability per precision: Ampere brought bf16, Ada and Hopper fp8 tensor cores."""


@dataclass(frozen=True)
class ChosenSource:
    """The energy source of a run, or None with the reason."""

    source: EnergyBackend | None
    reason: str = ""


def choose_source(config: ExperimentConfig, user: UserConfig) -> ChosenSource:
    """Pick the energy source: the configuration's, else the user's, else the first that works.

    Raises:
        PreFlightError: A source that was named cannot work here.

    """
    wanted = config.energy.backend if config.energy.backend != "auto" else user.measurement.energy_backend
    if wanted == "none":
        return ChosenSource(None, "energy.backend is none")
    if wanted != "auto":
        if wanted not in registry.energy_names():
            raise ConfigError(
                f"measurement.energy_backend: {wanted!r} is unknown; "
                f"valid: auto, none, {', '.join(registry.energy_names())}"
            )
        source = registry.energy_source(wanted, getattr(config.energy, wanted, None))
        found = source.availability()
        if not found.ok:
            raise PreFlightError([HardwareError(f"energy.backend: {wanted}: {found.reason}; {found.fix}")])
        return ChosenSource(source)
    reasons, still = [], None
    for name in registry.energy_auto_order():
        source = registry.energy_source(name)
        reason = source.availability().reason or ("" if source.devices() else "no GPU is visible")
        if not reason and source.KIND == "counter":
            still = counter_that_stands_still() if still is None else still
            reason = still
        if not reason:
            return ChosenSource(source)
        reasons.append(f"{name}: {reason}")
    return ChosenSource(None, f"no energy source ({'; '.join(reasons)})")


def quick_problems(config: ExperimentConfig, user: UserConfig) -> list[LLEMError]:
    """Everything that is known in milliseconds: engine installed, options supported, model and dataset at hand."""
    return [*engine_problems(config), *input_problems(config, user)]


def input_problems(config: ExperimentConfig, user: UserConfig) -> list[LLEMError]:
    """What keeps the model, the prompts or the energy source from being used; asks the hub for a hub model."""
    problems: list[LLEMError] = []
    problems += models.check(config.model, config.revision) if registry.needs_weights(config.backend) else []
    for check in (lambda: datasets.check(config), lambda: choose_source(config, user)):
        try:
            check()
        except PreFlightError as err:
            problems += err.problems or (err,)
        except LLEMError as err:
            problems.append(err)
    return problems


def engine_problems(config: ExperimentConfig) -> list[LLEMError]:
    """What the engine lacks for this configuration: the library, an option, a whole feature."""
    name = config.backend
    problems: list[LLEMError] = []
    runnable = [b for b in registry.backend_names() if registry.can_run(b)]
    if name not in runnable:
        problems.append(
            BackendMissingError(
                f"backend {name} can be planned but not yet run by this version, which runs {', '.join(runnable)}"
            )
        )
    elif not registry.installed(name):
        problems.append(BackendMissingError(f"backend {name} is not installed; run: {registry.install_hint(name)}"))
    else:
        problems += registry.engine(name).check(config)
    if config.traffic is not None:
        problems.append(BackendMissingError("traffic is not supported yet by this version; remove the section"))
    if config.measurement.window == "saturated" and not registry.is_continuous(name, config.section):
        problems.append(
            BackendMissingError(
                f"measurement.window: saturated needs continuous batching, which {_way_to_continuous(name)}"
            )
        )
    return problems


def _way_to_continuous(name: str) -> str:
    settings = registry.backend_settings(name)
    if "batching" in settings.model_fields and registry.is_continuous(
        name, settings.model_validate({"batching": "continuous"})
    ):
        return f"is off; set {name}.batching=continuous, or use passes"
    return f"backend {name} has not; use passes"


def hardware_problems(config: ExperimentConfig, environ: Mapping[str, str] | None = None) -> list[LLEMError]:
    """GPUs that are missing or too old for this precision."""
    environ = os.environ if environ is None else environ
    devices = visible_devices()
    wanted = environ.get("LLEM_GPU_COUNT")
    if wanted and not wanted.isdigit():
        raise ConfigError(f"LLEM_GPU_COUNT: must be a whole number, not {wanted!r}")
    if wanted and len(devices) < int(wanted) and environ.get("LLEM_ALLOW_CPU") != "1":
        return [
            HardwareError(
                f"{wanted} GPUs must be visible, but there are {len(devices)}; check the node and CUDA_VISIBLE_DEVICES"
            )
        ]
    least = MIN_CAPABILITY.get(config.precision)
    if not devices or least is None or not registry.is_real(config.backend):
        return []
    with nvml() as lib:
        for device in devices:
            have = tuple(lib.nvmlDeviceGetCudaComputeCapability(lib.nvmlDeviceGetHandleByUUID(device.uuid)))
            if have < least:
                return [
                    HardwareError(
                        f"{config.precision} needs compute capability {least[0]}.{least[1]}, "
                        f"{device.name} has {have[0]}.{have[1]}; use -p fp16"
                    )
                ]
    return []


def refuse(problems: list[LLEMError]) -> None:
    """Raise one error for all problems: ConfigError if all lie in the configuration, else PreFlightError."""
    if not problems:
        return
    if all(isinstance(p, ConfigError) for p in problems):
        raise (
            problems[0] if len(problems) == 1 else ConfigError("\n  - ".join(["several problems", *map(str, problems)]))
        )
    raise PreFlightError(problems)


def check_datasets(experiments: Iterable[ExperimentConfig]) -> None:
    """Raise ConfigError if the prompts of an experiment are not at hand, as far as no network is needed to know."""
    asked = set()
    for config in experiments:
        key = config.model_dump_json(include={"dataset", "n"})
        if key not in asked:
            asked.add(key)
            datasets.check(config)


def check_writable(folder: Path) -> None:
    """Raise PreFlightError unless files can be made in `folder` (or its nearest existing parent); leaves nothing."""
    probe = folder.absolute()
    while not probe.exists() and probe.parent != probe:
        probe = probe.parent
    try:
        if not probe.is_dir():
            raise NotADirectoryError(20, f"{probe} is a file")
        with tempfile.NamedTemporaryFile(dir=probe, prefix=".llem-"):
            pass
    except OSError as err:
        raise PreFlightError(f"output folder {folder}: not writable ({err.strerror}); choose another with -o") from err


def memory_warning(config: ExperimentConfig, user: UserConfig) -> str | None:
    """A sentence if the estimate is likely to exceed the smallest visible GPU; None if it fits or is unknown."""
    devices = visible_devices()
    estimate = estimate_memory(config, user) if devices else None
    if estimate is None:
        return None
    with nvml() as lib:
        sizes = [lib.nvmlDeviceGetMemoryInfo(lib.nvmlDeviceGetHandleByUUID(d.uuid)).total / 2**20 for d in devices]
    if estimate.total_mb <= flops.LIKELY_OOM * min(sizes):
        return None
    need, have = estimate.total_mb, min(sizes)
    return f"likely_out_of_memory: about {need:,.0f} MB wanted of {have:,.0f} MB; lower batch size or lengths"


def estimate_memory(config: ExperimentConfig, user: UserConfig) -> flops.MemoryEstimate | None:
    """Estimated device memory from the model's config.json, if it is on this machine."""
    if not registry.needs_weights(config.backend):
        return None
    model_config = models.local_config(config.model, config.revision, cache=cache_dir(user))
    if not model_config:
        return None
    return flops.estimate_memory(config, model_config, batch_key=registry.batch_size_key(config.backend))


def occupied(devices: Iterable[Device], own: frozenset[int]) -> list[str]:
    """A sentence per GPU on which processes other than `own` compute already: the verdict will say what it meant."""
    found = []
    with nvml() as lib:
        for device in devices:
            try:
                running = lib.nvmlDeviceGetComputeRunningProcesses(lib.nvmlDeviceGetHandleByUUID(device.uuid))
            except lib.NVMLError:
                continue  # a driver that does not list processes
            pids = sorted({p.pid for p in running} - own)
            if pids:
                who = f"process {', '.join(map(str, pids))}"
                found.append(
                    f"gpu_occupied: {who} computes on {device.uuid} before this run does; end it and run again"
                )
    return found
