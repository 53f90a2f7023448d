"""CodeCarbon: an estimate from power polled once a second and modelled CPU and RAM watts, labelled as such."""

import importlib.util
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel

from llenergymeasure.core.contracts import Availability, Device, DeviceEnergy, Edges, EnergyRecord
from llenergymeasure.core.errors import MeasurementError
from llenergymeasure.nvml_sampling import visible_devices, whole_boards

NAME = "codecarbon"
AUTO_RANK = 3
J_PER_KWH = 3.6e6
ESTIMATE = "codecarbon_estimate: host energy is modelled by CodeCarbon, not measured; do not compare across machines"


class Source:
    """CodeCarbon's offline tracker, one task per window."""

    NAME: ClassVar[str] = NAME
    KIND: ClassVar[str] = "estimate"

    def __init__(self, settings: BaseModel | None = None) -> None:
        del settings
        self._tracker: Any = None
        self._devices: tuple[Device, ...] = ()
        self._windows: dict[str, tuple[DeviceEnergy, ...]] = {}
        self._host_j: float | None = None

    def availability(self) -> Availability:
        """Needs the library, and GPUs that are whole where there are some."""
        if importlib.util.find_spec("codecarbon") is None:
            return Availability(False, "codecarbon is not installed", 'pip install "llenergymeasure[codecarbon]"')
        return whole_boards()

    def devices(self) -> tuple[Device, ...]:
        """Visible GPUs."""
        return visible_devices()

    def start(self, devices: Sequence[Device], *, interval_s: float) -> None:
        """Make the tracker; the country only matters for its own CO2 figure, which is not used."""
        del interval_s  # its own pace is at least one second
        from codecarbon import OfflineEmissionsTracker

        self._devices = tuple(devices)
        try:
            self._tracker = OfflineEmissionsTracker(
                country_iso_code="FRA",
                measure_power_secs=1,
                save_to_file=False,
                allow_multiple_runs=True,
                log_level="critical",
                gpu_ids=[d.index for d in devices] or None,
            )
        except Exception as err:
            raise MeasurementError(f"codecarbon cannot start: {type(err).__name__}: {err}") from err

    def open_window(self, name: str) -> float:
        """Start a task."""
        self._tracker.start_task(name)
        return time.monotonic()

    def close_window(self, name: str, edges: Edges = "loaded") -> float:
        """Stop the task and keep its energies."""
        del edges
        end_s = time.monotonic()
        data = self._tracker.stop_task(name)
        self._windows[name] = self._share(float(data.gpu_energy) * J_PER_KWH)
        if name == "window":
            self._host_j = (float(data.cpu_energy) + float(data.ram_energy)) * J_PER_KWH
        return end_s

    def _share(self, joules: float) -> tuple[DeviceEnergy, ...]:
        """CodeCarbon gives one figure for all GPUs; with one GPU it is that GPU's; 0 means that it saw none."""
        if len(self._devices) == 1 and joules > 0:
            return (DeviceEnergy(self._devices[0].uuid, joules),)
        reason = "codecarbon gives one figure for all GPUs, which cannot be split"
        if joules <= 0:
            reason = (
                "codecarbon read no GPU energy in this window; it needs nvidia-smi on the PATH and a second or more"
            )
        return tuple(DeviceEnergy(d.uuid, None, reason=reason) for d in self._devices)

    def attend(self) -> None:
        """Nothing: it has a pace of its own."""

    def guard_s(self) -> float:
        """None: it cuts at its own samples, a second apart."""
        return 0.0

    def mean_power_w(self, start_s: float, end_s: float) -> float | None:
        """Not while it runs."""
        del start_s, end_s
        return None

    def stop(self) -> EnergyRecord:
        """Stop the tracker."""
        self._tracker.stop()
        return EnergyRecord(windows=self._windows, host_energy_j=self._host_j, warnings=(ESTIMATE,))
