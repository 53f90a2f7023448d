"""Idle power in a study: measured by the parent before the first run, handed to every run, measured again when old."""

import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cli.process import FAST, alive, environment, over, wait_until
from fakes.nvml_script import Gpu, Machine, children, install
from llenergymeasure import ExperimentConfig, ExperimentResult, baseline
from llenergymeasure.core.errors import MeasurementError
from llenergymeasure.core.result import EnergyBreakdown, IdleAsRead
from llenergymeasure.gpu_settings import read_settings
from llenergymeasure.known_baselines import KnownBaselines, measure_apart
from llenergymeasure.nvml_sampling import visible_devices
from llenergymeasure.user_config import UserConfig
from study.running import Watcher, execute, make

UUID = "GPU-aaaaaaaa-1111"
BARE: dict[str, Any] = {
    "energy": {"backend": "nvml"},
    "warmup": {"n_warmup": 1, "thermal_floor_seconds": 0},
    "baseline": {"enabled": True, "kind": "bare", "duration_seconds": 5},
}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with one scripted GPU that idles at 90 W, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    machine = install(tmp_path, monkeypatch)
    machine.play(Gpu(uuid=UUID, power=[(0.0, 90.0)]))
    return machine


class Apart:
    """Pretends to measure: notes the calls, gives rows of a given age, or fails."""

    def __init__(self, age_s: float = 0.0, error: str = "") -> None:
        self.age_s, self.error, self.calls = age_s, error, 0

    def __call__(self, config: ExperimentConfig, variables: Mapping[str, str]) -> dict[str, baseline.Row]:
        self.calls += 1
        if self.error:
            raise MeasurementError(self.error)
        settings = read_settings(visible_devices())
        at = datetime.now(UTC) - timedelta(seconds=self.age_s)
        found = baseline.Baseline(90.0, config.baseline.kind, "fresh", at, {UUID: 90.0})
        return baseline.rows_of(found, settings)


def _config(**fields: Any) -> ExperimentConfig:
    return ExperimentConfig(**over(FAST, BARE, fields))


def test_a_study_measures_idle_power_once_and_its_runs_check_it(machine: Machine, tmp_path: Path) -> None:
    """Two runs, no cache beforehand: neither records its own baseline, both confirm the parent's by a spot check."""
    watcher = Watcher(tmp_path / "out")
    done = execute(make(BARE, {"sweep": {"n": [2, 3]}}), tmp_path / "out", watcher)
    found = [r.energy_breakdown for r in done.rebuilt.results]
    assert [b.baseline_method for b in found] == ["validated", "validated"]
    assert {b.baseline_timestamp for b in found} == {found[0].baseline_timestamp}
    assert found[0].baseline_power_w == pytest.approx(90.0, rel=0.01)
    assert found[0].baseline_drift_w is not None
    first = min(r.start_time for r in done.rebuilt.results)
    assert found[0].baseline_timestamp is not None
    assert found[0].baseline_timestamp < first


def test_what_is_known_is_not_measured_again(machine: Machine) -> None:
    """Once per kind of idle; the runs find it in their environment."""
    apart, notes = Apart(), []
    known = KnownBaselines(UserConfig(), apart)
    for kind in ("bare", "bare", "context", "bare"):
        known.prepare(_config(baseline={"kind": kind}), notes.append)
    assert apart.calls == 2
    assert len(notes) == 2
    rows = baseline.handed_down(known.variables())
    assert sorted(name.split("/")[2] for name in rows) == ["bare", "context"]


@pytest.mark.parametrize(
    ("fields", "calls"),
    [
        pytest.param({"baseline": {"enabled": False}}, 0, id="off"),
        pytest.param({"baseline": {"kind": "loaded"}}, 0, id="loaded: comes with the window"),
        pytest.param({"baseline": {"cache_ttl_seconds": 0}}, 0, id="each run measures"),
        pytest.param({"energy": {"backend": "simulated"}}, 0, id="no real counter"),
        pytest.param({}, 1, id="wanted"),
    ],
)
def test_only_what_runs_can_use_is_measured(fields: dict[str, Any], calls: int, machine: Machine) -> None:
    """A baseline that no run would take costs no time."""
    apart = Apart()
    KnownBaselines(UserConfig(), apart).prepare(_config(**fields), lambda _text: None)
    assert apart.calls == calls


def test_an_old_one_is_measured_again(machine: Machine) -> None:
    """When its time to live is over, before the next run."""
    apart = Apart(age_s=3601)
    known = KnownBaselines(UserConfig(), apart)
    for _ in range(2):
        known.prepare(_config(), lambda _text: None)
    assert apart.calls == 2


@pytest.mark.parametrize(
    ("method", "kind", "learnt"),
    [
        pytest.param("fresh", "counter", True, id="measured by the run"),
        pytest.param("validated", "counter", False, id="known before"),
        pytest.param("fresh", "estimate", False, id="an estimate"),
        pytest.param("unavailable", None, False, id="none"),
    ],
)
def test_what_a_run_has_measured_anew_serves_the_next(
    method: Any, kind: str | None, learnt: bool, machine: Machine
) -> None:
    """A run whose spot check disagreed measures again; the study goes on with what the sensor read then."""
    settings = read_settings(visible_devices())[UUID]
    found = EnergyBreakdown(
        baseline_method=method,
        baseline_kind="bare",
        baseline_per_device_w={UUID: 95.95},  # calibrated: gain 1.01
        baseline_as_read={UUID: IdleAsRead(power_w=95.0, spread_w=0.5, samples=30, drift_w=2.0)},
        baseline_timestamp=datetime.now(UTC),
        baseline_settings={UUID: settings.digest},
    )
    snapshot = {"driver_version": settings.driver}
    known = KnownBaselines(UserConfig(), Apart())
    known.prepare(_config(), lambda _text: None)
    known.learn(
        ExperimentResult.model_construct(energy_breakdown=found, energy_kind=kind, environment_snapshot=snapshot)
    )
    (row,) = baseline.handed_down(known.variables()).values()
    assert row.power_w == (95.0 if learnt else 90.0)
    assert row.recorded == (baseline.Spread(0.5, 30, 2.0) if learnt else None)


def test_a_failure_is_told_once_and_left_to_the_runs(machine: Machine) -> None:
    """The study goes on; what cannot be measured here is not tried before every run."""
    apart, notes = Apart(error="no context"), []
    known = KnownBaselines(UserConfig(), apart)
    for _ in range(2):
        known.prepare(_config(), notes.append)
    assert apart.calls == 1
    assert [n for n in notes if "no context; each run measures the idle power itself" in n] == notes[1:]
    assert known.variables() == {}


def test_the_other_process_says_why_it_failed(machine: Machine) -> None:
    """Without a GPU the helper ends with the reason, not with a traceback."""
    machine.play()
    with pytest.raises(MeasurementError, match="no NVIDIA GPU or driver is visible"):
        measure_apart(_config(), {})


def test_the_other_process_ends_with_a_study_that_was_killed(machine: Machine, tmp_path: Path) -> None:
    """SIGKILL to the study while its idle power is measured leaves neither the helper nor its sampler on the GPU."""
    path = tmp_path / "config.json"
    path.write_text(_config(baseline={"duration_seconds": 120}).model_dump_json(exclude_none=True), encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from llenergymeasure import ExperimentConfig; "
        "from llenergymeasure.known_baselines import measure_apart; "
        "measure_apart(ExperimentConfig.model_validate_json(Path(sys.argv[1]).read_text()), {})"
    )
    study = subprocess.Popen([sys.executable, "-c", code, str(path)], env=environment())
    helpers = wait_until(lambda: children(study.pid, running=["llenergymeasure.known_baselines"]))
    samplers = wait_until(lambda: children(helpers[0], running=["nvml"]))
    study.kill()
    study.wait()
    assert helpers
    assert samplers
    assert wait_until(lambda: not any(map(alive, [*helpers, *samplers])))
