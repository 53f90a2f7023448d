"""How long a run takes is said before it starts, from what is known here: source, idle power, settling, window."""

from datetime import UTC, datetime
from typing import Any

import pytest

from fakes.nvml_script import Gpu, Machine
from llenergymeasure import baseline
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.expected import all_runs_s, expected, sentence
from llenergymeasure.gpu_settings import read_settings
from llenergymeasure.nvml_sampling import visible_devices
from llenergymeasure.user_config import UserConfig, cache_dir

UUID = "GPU-aaaaaaaa-1111"
NVML: dict[str, Any] = {"energy": {"backend": "nvml"}}
BARE = {"kind": "bare"}


def _config(**fields: Any) -> ExperimentConfig:
    return ExperimentConfig(model="m", dataset="builtin", **fields)


def _remember() -> None:
    found = baseline.Baseline(90.0, "bare", "fresh", datetime.now(UTC), {UUID: 90.0})
    baseline.keep(baseline.rows_of(found, read_settings(visible_devices())), cache_dir())


@pytest.mark.parametrize(
    ("fields", "known", "seconds"),
    [
        pytest.param({"energy": {"backend": "none"}}, False, 0, id="no source: one pass"),
        pytest.param(
            {"measurement": {"min_duration_seconds": 5}} | {"energy": {"backend": "none"}}, False, 5, id="set"
        ),
        pytest.param({"energy": {"backend": "simulated"}}, False, 30 + 60, id="pretended: nothing to settle"),
        pytest.param(NVML, False, 32 + 20 + 60 + 2, id="context, settling, window, guards"),
        pytest.param(NVML | {"baseline": BARE}, False, 30 + 20 + 60 + 2, id="bare"),
        pytest.param(NVML | {"baseline": BARE}, True, 5 + 20 + 60 + 2, id="known: only checked"),
        pytest.param(NVML | {"baseline": {"kind": "loaded"}}, False, 20 + 60 + 2, id="loaded comes free"),
        pytest.param(NVML | {"baseline": {"enabled": False}}, False, 20 + 60 + 2, id="no baseline"),
        pytest.param(NVML | {"warmup": {"enabled": False}}, False, 32 + 60 + 2, id="no warm-up"),
        pytest.param(NVML | {"warmup": {"thermal_wait": "fixed"}}, False, 32 + 60 + 60 + 2, id="fixed wait"),
        pytest.param(NVML | {"warmup": {"thermal_floor_seconds": 0}}, False, 32 + 60 + 2, id="no wait"),
    ],
)
def test_the_least_duration_of_a_run(fields: dict[str, Any], known: bool, seconds: float, machine: Machine) -> None:
    """What a run takes at least, beside loading and warm-up."""
    machine.play(Gpu(uuid=UUID))
    if known:
        _remember()
    assert expected(_config(**fields), UserConfig()).least_s == seconds


def test_later_runs_of_a_study_only_check_the_idle_power(machine: Machine) -> None:
    """Three runs: one baseline, two looks of 5 s in a context that takes 2 s to make; without a cache three."""
    machine.play(Gpu(uuid=UUID))
    one = expected(_config(**NVML), UserConfig())
    assert all_runs_s([one] * 3) == 3 * (20 + 60 + 2) + 32 + 2 * 7
    fresh = expected(_config(**NVML, baseline={"cache_ttl_seconds": 0}), UserConfig())
    assert all_runs_s([fresh] * 3) == 3 * (20 + 60 + 2 + 32)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param(
            NVML | {"baseline": BARE},
            "energy by nvml on 1 GPU; at least 112 s plus loading: idle power 30 s, settling under load 20 s to 60 s, "
            "window 60 s",
            id="a GPU",
        ),
        pytest.param(
            {"energy": {"backend": "none"}},
            "no energy is measured: energy.backend is none; one pass over the prompts",
            id="none",
        ),
    ],
)
def test_what_is_said(fields: dict[str, Any], said: str, machine: Machine) -> None:
    """One line with source, time and what it is spent on."""
    machine.play(Gpu(uuid=UUID))
    assert sentence(expected(_config(**fields), UserConfig())) == said


def test_a_source_that_cannot_work_is_told_as_none(machine: Machine) -> None:
    """Pre-flight refuses the run; what is said before does not fail first."""
    machine.play()
    assert "energy.backend: nvml: no NVIDIA GPU" in sentence(expected(_config(**NVML), UserConfig()))
