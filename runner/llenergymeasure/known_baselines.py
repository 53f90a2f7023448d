"""The idle powers that a study knows and hands to its runs: measured before the first run, again when they are too old.

They are measured in a process of its own, by the same code as in a run: the study's process opens no energy source.
That process ends with the study's, however that ends.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from llenergymeasure import baseline, leash, preflight, run_baseline
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.errors import LLEMError, MeasurementError
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.gpu_settings import read_settings
from llenergymeasure.run_energy import own_devices
from llenergymeasure.user_config import UserConfig, cache_dir, load_user_config

LIMIT_S = 600.0  # three recordings of 120 s, two pauses of 30 s, and room for the start of a driver

VARIABLE = "LLEM_EXPERIMENT"

Apart = Callable[[ExperimentConfig, Mapping[str, str]], dict[str, baseline.Row]]


class KnownBaselines:
    """What a study knows of its GPUs' idle power; `apart` measures it for a configuration."""

    def __init__(self, user: UserConfig, apart: Apart | None = None) -> None:
        self._user, self._apart = user, apart or measure_apart
        self._rows: dict[str, baseline.Row] = {}
        self._failed: set[str] = set()

    def prepare(self, config: ExperimentConfig, note: Callable[[str], None]) -> None:
        """Measure the idle power that a run of this configuration wants, unless it is known; GPUs must be free.

        That it cannot be measured is noted once: each run then measures it itself.
        """
        if not self._wants(config) or config.baseline.kind in self._failed or self._knows(config):
            return
        note(f"measuring the idle power first, {config.baseline.duration_seconds:.0f} s")
        try:
            self._rows |= self._apart(config, self.variables())
        except LLEMError as err:
            self._failed.add(config.baseline.kind)
            note(f"{err}; each run measures the idle power itself")

    def learn(self, result: ExperimentResult) -> None:
        """Take over what a run has measured by a counter, as the sensor read it: each run corrects it itself."""
        found = result.energy_breakdown
        if found.baseline_method != "fresh" or result.energy_kind != "counter" or found.baseline_timestamp is None:
            return
        driver, kept = result.environment_snapshot.get("driver_version"), baseline.read_rows(cache_dir(self._user))
        for uuid, seen in (found.baseline_as_read or {}).items():
            digest = (found.baseline_settings or {}).get(uuid)
            name = baseline.key(uuid, driver, str(found.baseline_kind), digest)
            row = baseline.Row(
                measured_at=found.baseline_timestamp, temperature_c=found.baseline_temperature_c, **seen.model_dump()
            )
            full = kept.get(name)
            self._rows[name] = full if full is not None and full.measured_at >= row.measured_at else row

    def variables(self) -> dict[str, str]:
        """The environment by which a run learns of them, over those that this process was told itself."""
        rows = {**baseline.handed_down(os.environ), **self._rows}
        return {baseline.VARIABLE: baseline.to_variable(rows)} if rows else {}

    def _wants(self, config: ExperimentConfig) -> bool:
        b = config.baseline
        return b.enabled and b.kind != "loaded" and b.cache_ttl_seconds > 0

    def _knows(self, config: ExperimentConfig) -> bool:
        """Whether the rows suffice; also true where a run has no counter that could use them."""
        try:
            source = preflight.choose_source(config, self._user).source
        except LLEMError:
            return True  # the run itself says so
        devices = own_devices(config, source)
        if source is None or source.KIND != "counter" or not devices:
            return True
        settings, folder = read_settings(devices), cache_dir(self._user)
        return baseline.known(config, settings, folder, environ=self.variables()) is not None


def measure_apart(config: ExperimentConfig, variables: Mapping[str, str]) -> dict[str, baseline.Row]:
    """Measure idle power in a process of its own.

    Raises:
        MeasurementError: It cannot be measured; says why.

    """
    environment = {**os.environ, **variables, VARIABLE: config.model_dump_json(exclude_none=True)}
    command = [sys.executable, "-m", "llenergymeasure.known_baselines"]
    try:
        held, held_here = leash.pipe()
        with held, held_here:
            done = subprocess.run(
                command,
                env={**environment, leash.VARIABLE: str(held.fileno())},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                check=False,
                pass_fds=(held.fileno(),),
            )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise MeasurementError(f"the idle power could not be measured: {err}") from err
    if done.returncode:
        said: list[Any] = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MeasurementError(f"the idle power could not be measured: {said[-1]}")
    return baseline.handed_down({baseline.VARIABLE: done.stdout})


def _main() -> None:
    """The process that a study starts: a configuration comes in by a variable, rows go to standard output."""
    leash.tie_to_parent(os.environ)
    try:
        config = ExperimentConfig.model_validate_json(os.environ[VARIABLE])
        rows = run_baseline.rows_alone(config, load_user_config())
    except LLEMError as err:
        raise SystemExit(str(err)) from err
    sys.stdout.write(baseline.to_variable(rows))


if __name__ == "__main__":
    _main()
