"""What joules rest on, in words: both uncertainties, both idles, sensors and checks; one run or several."""

from collections.abc import Sequence
from typing import Any

import pytest

from core.test_result_records import result
from llenergymeasure import evidence, report
from llenergymeasure.core.result import ExperimentResult

KNOWN: dict[str, Any] = {
    "energy_total_j": 6000.0, "energy_per_output_token_j": 0.5, "energy_adjusted_j": 3000.0,
    "energy_per_device_j": {"GPU-a": 6000.0}, "baseline_power_w": 121.5, "loaded_idle_power_w": 129.0,
    "energy_breakdown": {"baseline_kind": "context", "baseline_method": "validated", "baseline_std_uncertainty_w": 0.7},
    "uncertainty": {
        "edge": 0.0002, "tokens": 0.0, "work": 0.001, "between_runs": 0.003, "between_runs_source": "measured",
        "gain_limit": 0.1, "standard": 0.0032, "comparison": 0.0066, "absolute": 0.0952, "adjusted_comparison": 0.02,
    },
    "cross_check": {"source": "average power", "ratio": 0.9951, "excess": 0.001, "allowance": 0.004,
                    "ratios": {"average power": 0.9951, "sample buffer": 1.0012}},
    "conditions": {"power_cap_share": 1.0, "power_limit_w": 700.0, "power_drift": -0.012, "clock_drift": 0.001,
                   "pace_drift": -0.02, "temperature_c": 46.7, "sm_clock_mhz": 1965.2},
    "settle": {"settled": True, "seconds": 33.86, "power_drift": -0.0028, "temperature_change_c": 2.0, "reason": "level"},
    "sensors": {"GPU-a": {"period_s": 0.09999, "jitter_s": 0.0006, "edges": "quiet"}},
}  # fmt: skip


def run(**changes: Any) -> ExperimentResult:
    return result(**{**KNOWN, **changes})


ONE = [
    ("uncertainty", ("±0.66 % (95 %) compared with other runs on this GPU; ±9.5 % absolute, because the sensor's gain is "
     "not calibrated (±10 %)")),
    ("budget", "edges 0.02 %, mix of work 0.1 %, run to run 0.3 % (measured)"),
    ("idle", "122 W (context, validated) with a standard uncertainty of 0.7 W; 129 W with the engine loaded and waiting"),
    ("second_reading", ("average power 0.9951, sample buffer 1.0012 times the counter; the same sensor as the counter, so "
     "blind to an error of its gain")),
    ("sensor", "the counter ticks every 100 ms, give or take 0.6 ms; quiet edges"),
    ("calibration", "-"),
    ("power_cap", "100 % of the window at a limit of 700 W"),
    ("settling", ("settled after 33.9 s under load; at its end power \N{MINUS SIGN}0.3 % in 10 s, temperature 2 °C in "
     "20 s")),
    ("state", "47 °C, SM clock 1965 MHz"),
    ("drifts", "power \N{MINUS SIGN}1.2 %, batches per second \N{MINUS SIGN}2.0 %, clocks +0.1 %"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), ONE, ids=[name for name, _ in ONE])
def test_one_run_is_told(name: str, text: str) -> None:
    """Each fact in a sentence with its figures."""
    assert getattr(evidence, name)([run()]) == text


def test_runs_at_different_temperatures_show_their_range() -> None:
    """The coolest and the warmest run."""
    runs = [run(conditions={"temperature_c": c}) for c in (59.2, 46.7, None)]
    assert evidence.state(runs) == "47 to 59 °C"


def test_a_jitter_that_the_readings_hide_is_less_than_its_limit() -> None:
    """An upper limit is not told as a value."""
    known = run(sensors={"GPU-a": {"period_s": 0.1, "jitter_s": 0.0013, "jitter_hidden": True, "edges": "quiet"}})
    assert "every 100 ms, give or take less than 1.3 ms; quiet" in evidence.sensor([known])


@pytest.mark.parametrize(
    ("jitters", "text"),
    [
        ([(0.0013, True), (0.004, False)], "give or take 4 ms, less than 1.3 ms where the readings hide it; quiet"),
        ([(0.004, None), (0.002, False)], "give or take 2 to 4 ms; quiet"),
        ([(0.0013, True), (0.0012, True)], "give or take less than 1.3 ms; quiet"),
        ([(0.0013, True), (None, None)], "give or take less than 1.3 ms; quiet"),
    ],
    ids=["both", "measured", "hidden", "one unknown"],
)
def test_limits_and_values_of_jitter_are_not_one_range(
    jitters: Sequence[tuple[float | None, bool | None]], text: str
) -> None:
    """A measured 4 ms is not "less than"; limits of several GPUs hold with the largest."""
    sensors = {
        f"GPU-{i}": {"period_s": 0.1, "jitter_s": jitter_s, "jitter_hidden": hidden, "edges": "quiet"}
        for i, (jitter_s, hidden) in enumerate(jitters)
    }
    assert evidence.sensor([run(energy_per_device_j=None, sensors=sensors)]).startswith(
        f"the counter ticks every 100 ms, {text}"
    )


@pytest.mark.parametrize("name", [name for name, _ in ONE])
def test_what_is_not_known_is_a_dash(name: str) -> None:
    """No sentence without a figure."""
    assert getattr(evidence, name)([result()]) == "-"
    assert getattr(evidence, name)([]) == "-"


def test_several_runs_have_ranges_and_the_worst() -> None:
    """Idle powers and ratios from least to largest; the widest uncertainty."""
    check = {"source": "x", "ratio": 1.01, "ratios": {"average power": 1.01}}
    other = run(
        baseline_power_w=118.0, cross_check=check, uncertainty={"comparison": 0.02, "absolute": 0.1, "gain_limit": 0.1}
    )
    results: Sequence[ExperimentResult] = [run(), other]
    assert evidence.uncertainty(results).startswith("up to ±2 % (95 %)")
    assert evidence.idle(results).startswith("118 to 122 W (context, validated)")
    assert evidence.second_reading(results).startswith("average power 0.9951 to 1.0100, sample buffer 1.0012 times")


SETTLED = {"settled": True, "seconds": 20.0, "power_drift": 0.001, "temperature_change_c": 1.0}
UNSETTLED = {"settled": False, "seconds": 60.0, "power_drift": -0.009, "temperature_change_c": 3.0}


@pytest.mark.parametrize(
    ("settles", "text"),
    [
        ([SETTLED, {**SETTLED, "seconds": 31}, UNSETTLED],
         ("2 of 3 runs settled after 20 to 31 s under load; 1 of 3 runs not settled after 60 s under load; "
          "at its end power \N{MINUS SIGN}0.9 % in 10 s, temperature 3 °C in 20 s")),
        ([UNSETTLED | {"temperature_change_c": None}],
         "not settled after 60 s under load; at its end power \N{MINUS SIGN}0.9 % in 10 s"),
        ([{"seconds": 30.0, "reason": "fixed: idle"}], "idle for 30 s"),
        ([{"reason": "no GPU"}, {"reason": "no GPU"}], "none (no GPU)"),
    ],
    ids=["some", "not", "fixed", "none"],
)  # fmt: skip
def test_settling_is_told(settles: Sequence[dict[str, Any]], text: str) -> None:
    """Whether it settled, after how long, and what still moved: the worst of several runs; else why not."""
    assert evidence.settling([run(settle=s) for s in settles]) == text


def test_a_calibration_is_told_with_the_joules_before_it() -> None:
    """Gain, offset, raw joules, and the gain's own limit."""
    known = run(
        energy_uncalibrated_j=5800.0,
        sensors={"GPU-a": {"gain": 1.035, "offset_w": -1.5}},
        uncertainty={**KNOWN["uncertainty"], "gain_limit": 0.01},
    )
    assert evidence.calibration([known]) == "gain 1.03, offset -1.5 W; 5800 J as read"
    assert "the sensor's gain is calibrated (±1 %)" in evidence.uncertainty([known])


@pytest.mark.parametrize(
    ("gains", "limit", "said"),
    [
        ({"GPU-a": 1.02, "GPU-b": None}, 0.055, "the gain of 1 of 2 sensors is calibrated (±5.5 %)"),
        ({"GPU-a": 1.02, "GPU-b": 0.98}, 0.01, "the sensor's gain is calibrated (±1 %)"),
        ({"GPU-a": 1.02}, 0.12, "the sensor's gain is calibrated (±12 %)"),
        ({"GPU-a": None}, 0.1, "the sensor's gain is not calibrated (±10 %)"),
    ],
    ids=["one of two", "both", "coarsely", "none"],
)
def test_whether_a_gain_is_calibrated_is_what_the_sensors_say(
    gains: dict[str, float | None], limit: float, said: str
) -> None:
    """Not what the width of its limit looks like."""
    known = run(
        energy_per_device_j=dict.fromkeys(gains, 3000.0), energy_total_j=3000.0 * len(gains),
        sensors={u: {"gain": g} for u, g in gains.items()}, uncertainty={**KNOWN["uncertainty"], "gain_limit": limit},
    )  # fmt: skip
    assert evidence.uncertainty([known]).endswith(f"absolute, because {said}")


def test_the_terminal_shows_it_all() -> None:
    """Both half-widths, both idles, second reading, verdict with its reason and fix."""
    reason = {"code": "gpu_shared", "sentence": "Somebody else used GPU-a.", "fix": "end the other processes"}
    text = report.single(run(verdict={"state": "invalid", "reasons": [reason]}))
    for part in (
        "0.5 ± 0.0033", "3000 ± 60", "±0.66 % (95 %)", "±9.5 % absolute", "129 W with the engine loaded", "0.9951",
        "every 100 ms", "settled after 33.9 s", "limit of 700 W", "invalid", "Somebody else used GPU-a.", "-> end the other processes",
    ):  # fmt: skip
        assert part in text
