"""The sampler is a process of its own: it dies loudly, never outlives its parent, and survives a busy one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.nvml_script import FAKES, Gpu, Machine, children
from llenergymeasure.core import registry
from llenergymeasure.core.errors import MeasurementError
from llenergymeasure.nvml_sampling import NvmlSampler, visible_devices

PATIENCE_S = 20.0


def _wait_until(true: Callable[[], Any], what: str) -> Any:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        if found := true():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE_S:g} s: {what}")


def _alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("when", ["close_window", "open_window", "stop"])
def test_a_killed_sampler_fails_the_measurement(when: str, machine: Machine) -> None:
    """Without its sampler a window has no energy: the next step raises, nothing is guessed."""
    machine.play(Gpu())
    source = registry.energy_source("nvml")
    source.start(source.devices(), interval_s=0.1)
    if when != "open_window":
        source.open_window("w")
    if when == "stop":
        source.close_window("w")
    (pid,) = children(os.getpid())
    os.kill(pid, signal.SIGKILL)
    _wait_until(lambda: source._sampler._child.poll() is not None, "the sampler and its threads are dead")
    steps = {"close_window": lambda: source.close_window("w"), "open_window": lambda: source.open_window("w")}
    with pytest.raises(MeasurementError, match="sampler ended by itself"):
        steps.get(when, source.stop)()


def test_a_sensor_that_fails_while_recording_is_named(machine: Machine) -> None:
    """When the counter becomes unreadable the error repeats NVML's own words."""
    machine.play(Gpu())
    source = registry.energy_source("nvml")
    source.start(source.devices(), interval_s=0.1)
    source.open_window("w")
    (pid,) = children(os.getpid())
    machine.play(Gpu(missing=["nvmlDeviceGetTotalEnergyConsumption"]))
    _wait_until(lambda: not _alive(pid), "the sampler gave up")
    with pytest.raises(MeasurementError, match="Not Supported"):
        source.close_window("w")


def test_stopping_ends_the_process_and_its_files(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After stop there is neither a child nor a recording left."""
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    machine.play(Gpu())
    source = registry.energy_source("nvml")
    source.start(source.devices(), interval_s=0.1)
    during = (len(children(os.getpid())), len(list(tmp_path.glob("llem-sampler-*"))))
    source.stop()
    after = (len(children(os.getpid())), len(list(tmp_path.glob("llem-sampler-*"))))
    assert (during, after) == ((1, 1), (0, 0))


def test_the_sampler_ends_with_its_parent(machine: Machine) -> None:
    """A run that is killed leaves no sampler behind."""
    machine.play(Gpu())
    code = (
        "from llenergymeasure.nvml_sampling import NvmlSampler, visible_devices\n"
        "import sys\n"
        "s = NvmlSampler()\n"
        "s.start(visible_devices(), interval_s=0.1)\n"
        "print('recording', flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"recording\n"
    (sampler,) = children(parent.pid)
    parent.kill()
    parent.wait()
    _wait_until(lambda: not _alive(sampler), "the sampler noticed")
    assert parent.stdin is not None
    parent.stdin.close()
    parent.stdout.close()


def test_a_busy_parent_does_not_disturb_the_recording(machine: Machine) -> None:
    """While the parent holds its interpreter lock the sampler goes on seeing ticks."""
    gpu = Gpu(power=[(0.0, 300.0)], period_s=0.05)
    machine.play(gpu)
    sampler = NvmlSampler()
    (device,) = visible_devices()
    sampler.start((device,), interval_s=0.05)
    start_s = sampler.mark()
    assert 7**2_500_000 > 0  # one long operation: no other thread of this process can run meanwhile
    end_s = sampler.mark()
    sampler.wait_for_tail([device.uuid])
    sampler.stop()
    series = sampler.series(device.uuid)
    sampler.discard()
    inside = sum(start_s <= t.t_s <= end_s for t in series.ticks)
    assert inside >= 0.7 * (end_s - start_s) / gpu.period_s - 1
    assert series.between(start_s, end_s).value == pytest.approx(gpu.joules(start_s, end_s), rel=0.03)


def test_the_fake_is_what_the_child_sees(machine: Machine) -> None:
    """The sampler's process imports the scripted pynvml, not NVIDIA's."""
    machine.play(Gpu(uuid="GPU-scripted"))
    code = "import pynvml; print(pynvml.__file__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert Path(out.strip()).is_relative_to(FAKES)
