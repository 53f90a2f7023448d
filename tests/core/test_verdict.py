"""The judgement on an energy: every row of the table of measurement.md §6, at its limits."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.core.conditions import Conditions
from llenergymeasure.core.contracts import Work
from llenergymeasure.core.cross_check import CrossCheck
from llenergymeasure.core.occupancy import Occupancy
from llenergymeasure.core.verdict import RULES, Evidence, judge, sum_problem, warnings

CLEAN = Evidence(source_kind="counter", energy_j=1000.0, energy_reason=None, window_s=60.0, relative_comparison=0.0196)


def went(**fields: Any) -> Evidence:
    """A clean run whose GPU went through something."""
    return replace(CLEAN, conditions=Conditions(**fields))


def seen(**fields: Any) -> Evidence:
    """A clean run with something on its GPU."""
    return replace(CLEAN, occupancy=Occupancy(gpu_uuid="GPU-a", **fields))


def checked(excess: float) -> Evidence:
    """A clean run whose second reading is so far off."""
    return replace(CLEAN, cross_check=CrossCheck(source="average power", ratio=1 + excess, excess=excess))


def worked(**fields: Any) -> Evidence:
    """A clean run that was fed in some way."""
    return replace(CLEAN, work=Work(**fields))


JUDGED: list[tuple[str, Evidence, str, list[str]]] = [
    ("clean", CLEAN, "valid", []),
    ("simulated", replace(CLEAN, source_kind="simulated"), "valid", []),
    ("estimate", replace(CLEAN, source_kind="estimate"), "estimated", ["no_counter"]),
    ("no-source", replace(CLEAN, source_kind=None, energy_j=None), "unmeasured", ["no_energy"]),
    ("constant", replace(CLEAN, energy_j=None, energy_reason="counter_constant: x"), "unmeasured", ["no_energy"]),
    ("zero-joules", replace(CLEAN, energy_j=0.0), "unmeasured", ["no_energy"]),
    ("negative-joules", replace(CLEAN, energy_j=-5.0), "unmeasured", ["no_energy"]),
    ("zero-joules-estimated", replace(CLEAN, energy_j=0.0, source_kind="estimate"), "unmeasured", ["no_energy"]),
    ("reset", replace(CLEAN, energy_j=None, energy_reason="a: counter_reset: x"), "invalid", ["counter_reset"]),
    ("edges-too-wide", replace(CLEAN, energy_j=None, energy_reason="a: window_too_short: x"), "invalid", ["window_too_short"]),
    ("gap", replace(CLEAN, energy_j=None, energy_reason="a: sample_gap: x"), "invalid", ["sample_gap"]),
    ("window-5", replace(CLEAN, window_s=5.0), "valid", []),
    ("window-below-5", replace(CLEAN, window_s=4.99), "invalid", ["window_too_short"]),
    ("uncertain-5", replace(CLEAN, relative_comparison=0.05), "valid", []),
    ("uncertain-above-5", replace(CLEAN, relative_comparison=0.0501), "invalid", ["imprecise"]),
    ("uncertainty-unknown", replace(CLEAN, relative_comparison=None), "valid", []),
    ("throttled-5", went(throttled_share=0.05), "valid", []),
    ("throttled-above-5", went(throttled_share=0.051), "invalid", ["throttled"]),
    ("always-capped-by-power", went(power_cap_share=1.0, power_limit_w=700.0), "valid", []),
    ("peak-1.3", went(peak_above_limit=1.3, peak_power_w=910.0), "valid", []),
    ("peak-above-1.3", went(peak_above_limit=1.31, peak_power_w=917.0), "invalid", ["counter_jump"]),
    ("power-drift-5", went(power_drift=-0.05), "valid", []),
    ("power-drift-above-5", went(power_drift=-0.051), "invalid", ["power_drift"]),
    ("clock-drift-is-never-invalid", went(clock_drift=-0.5), "valid", []),
    ("shared", seen(sentence="process 7 computed on the GPU", foreign_pids=[7]), "invalid", ["gpu_shared"]),
    ("display", seen(display_pids=[7]), "valid", []),
    ("suspended-0.5", replace(CLEAN, suspended_s=0.5), "valid", []),
    ("suspended-above-0.5", replace(CLEAN, suspended_s=0.51), "invalid", ["suspended"]),
    ("cross-check-5", checked(0.05), "valid", []),
    ("cross-check-above-5", checked(0.051), "invalid", ["cross_check"]),
    ("cross-check-without-a-sensor", replace(CLEAN, cross_check=CrossCheck(source="x", reason="none")), "valid", []),
    ("dummy", replace(CLEAN, dummy_values=True), "invalid", ["unrealistic_values"]),
    ("dummy-allowed", replace(CLEAN, dummy_values=True, allow_dummy=True), "valid", []),
    ("several", replace(went(throttled_share=0.5), window_s=1.0, relative_comparison=0.1, dummy_values=True),
     "invalid", ["window_too_short", "imprecise", "throttled", "unrealistic_values"]),
    ("bad-estimate", replace(CLEAN, source_kind="estimate", window_s=1.0), "invalid", ["window_too_short"]),
]  # fmt: skip


@pytest.mark.parametrize(("evidence", "state", "codes"), [r[1:] for r in JUDGED], ids=[r[0] for r in JUDGED])
def test_verdict_follows_from_the_evidence(evidence: Evidence, state: str, codes: list[str]) -> None:
    """Each fault gives its state and code at its limit; each reason has a sentence and a fix."""
    verdict = judge(evidence)
    assert verdict.state == state
    assert [r.code for r in verdict.reasons] == codes
    assert all(r.sentence and r.fix for r in verdict.reasons)


WARNED: list[tuple[str, Evidence, list[str]]] = [
    ("clean", CLEAN, []),
    ("window-10", replace(CLEAN, window_s=10.0), []),
    ("window-below-10", replace(CLEAN, window_s=9.9), ["short_window"]),
    ("window-below-5-is-invalid-instead", replace(CLEAN, window_s=4.0), []),
    ("short-without-energy", replace(CLEAN, energy_j=None, relative_comparison=None, window_s=9.0), []),
    ("uncertain-2", replace(CLEAN, relative_comparison=0.02), []),
    ("uncertain-above-2", replace(CLEAN, relative_comparison=0.021), ["imprecise"]),
    ("uncertain-above-5-is-invalid-instead", replace(CLEAN, relative_comparison=0.051), []),
    ("never-throttled", went(throttled_share=0.0), []),
    ("throttled-a-little", went(throttled_share=0.01), ["throttled"]),
    ("throttled-a-lot-is-invalid-instead", went(throttled_share=0.06), []),
    ("always-capped-by-power", went(power_cap_share=1.0, power_limit_w=700.0), []),
    ("clock-drift-3", went(clock_drift=0.03), []),
    ("clock-drift-above-3", went(clock_drift=-0.031), ["clock_drift"]),
    ("power-drift-2", went(power_drift=0.02), []),
    ("power-drift-above-2", went(power_drift=0.021), ["power_drift"]),
    ("power-drift-above-5-is-invalid-instead", went(power_drift=0.06), []),
    ("temperature-10", went(temperature_change_c=-10.0), []),
    ("temperature-above-10", went(temperature_change_c=10.1), ["temperature_drift"]),
    ("gap-of-3", went(interior_gap_ticks=3), []),
    ("gap-of-4", went(interior_gap_ticks=4), ["interior_gap"]),
    ("persistence-on", went(persistence_mode=True), []),
    ("persistence-off", went(persistence_mode=False), ["persistence_off"]),
    ("ecc-as-it-is", went(ecc_pending=False), []),
    ("ecc-switched", went(ecc_pending=True), ["ecc_changed"]),
    ("mains", went(on_battery=False), []),
    ("battery", went(on_battery=True), ["on_battery"]),
    ("display", seen(display_pids=[7]), ["display_attached"]),
    ("shared-is-invalid-instead", seen(display_pids=[7], sentence="x"), []),
    ("cross-check-2", checked(0.02), []),
    ("cross-check-above-2", checked(0.021), ["cross_check"]),
    ("two-batches", replace(went(peak_power_w=600.0), batches=2), ["drift_unknown"]),
    ("three-batches", replace(went(peak_power_w=600.0), batches=3), []),
    ("requests-side-by-side", replace(went(peak_power_w=600.0), batches=None), []),
    ("two-batches-without-ticks", replace(CLEAN, batches=2), []),
    ("two-batches-estimated", replace(went(peak_power_w=600.0), batches=2, source_kind="estimate"), []),
    ("full", worked(concurrency=100, mean_running=95.0), []),
    ("not-full", worked(concurrency=100, mean_running=94.9), ["below_concurrency"]),
    ("balanced", worked(imbalance=-0.02), []),
    ("not-balanced", worked(imbalance=-0.021), ["work_imbalance"]),
    ("several", went(clock_drift=0.5, persistence_mode=False), ["clock_drift", "persistence_off"]),
]


@pytest.mark.parametrize(("evidence", "codes"), [r[1:] for r in WARNED], ids=[r[0] for r in WARNED])
def test_condition_below_its_limit_is_a_warning(evidence: Evidence, codes: list[str]) -> None:
    """A condition that leaves the verdict alone is said, once, as `code: what and fix`."""
    found = warnings(evidence)
    assert [w.partition(": ")[0] for w in found] == codes
    assert all(w.count("; ") == 1 for w in found)


PACES = [
    ("pace-with-power", {"pace_drift": 0.06, "clock_drift": 0.0}, True),
    ("half-of-power-is-not-enough", {"pace_drift": 0.019, "clock_drift": 0.0}, False),
    ("pace-against-power", {"pace_drift": -0.06, "clock_drift": 0.0}, False),
    ("pace-unknown", {"pace_drift": None, "clock_drift": 0.0}, False),
    ("clocks-did-it", {"pace_drift": 0.06, "clock_drift": 0.06}, False),
    ("clocks-unknown", {"pace_drift": 0.06, "clock_drift": None}, False),
    ("throttled", {"pace_drift": 0.06, "clock_drift": 0.0, "throttled_share": 0.02}, False),
]


@pytest.mark.parametrize(("fields", "blames_the_host"), [r[1:] for r in PACES], ids=[r[0] for r in PACES])
def test_power_that_follows_the_pace_at_constant_clocks_blames_the_host(
    fields: dict[str, float | None], blames_the_host: bool
) -> None:
    """Then settling longer would not help; where the clocks moved, too, the GPU is to blame."""
    (text,) = [w for w in warnings(went(power_drift=0.038, **fields)) if w.startswith("power_drift")]
    assert ("processor" in text) is blames_the_host
    assert ("settle longer" in text) is not blames_the_host


@given(
    st.builds(
        Evidence,
        source_kind=st.sampled_from(["counter", "estimate", "simulated", None]),
        energy_j=st.none() | st.floats(-1e9, 1e9),
        energy_reason=st.none() | st.sampled_from(["counter_reset: x", "MIG slice", "sample_gap: y"]),
        window_s=st.floats(0.001, 1e5),
        relative_comparison=st.none() | st.floats(0, 1),
        conditions=st.builds(
            Conditions,
            throttled_share=st.none() | st.floats(0, 1),
            power_drift=st.none() | st.floats(-1, 1),
            peak_above_limit=st.none() | st.floats(0, 3),
            interior_gap_ticks=st.none() | st.integers(0, 100),
        ),
        occupancy=st.builds(Occupancy, sentence=st.none() | st.just("x"), display_pids=st.lists(st.integers(1, 9))),
        cross_check=st.none(),
        work=st.builds(Work),
        suspended_s=st.floats(0, 2),
        dummy_values=st.booleans(),
        allow_dummy=st.booleans(),
    )
)
def test_no_evidence_gives_a_state_without_its_reason(evidence: Evidence) -> None:
    """Valid has no reason, everything else has one; without joules nothing is valid or estimated."""
    verdict = judge(evidence)
    assert (verdict.state == "valid") == (verdict.reasons == [])
    if evidence.energy_j is None or evidence.energy_j <= 0:
        assert verdict.state in ("invalid", "unmeasured")


def test_no_fault_is_told_twice() -> None:
    """A rule gives a reason or a warning, never both; their codes are its own."""
    bad = replace(
        went(throttled_share=0.5, power_drift=0.5, clock_drift=0.5, interior_gap_ticks=9, peak_above_limit=9.0),
        suspended_s=9.0,
        dummy_values=True,
        occupancy=Occupancy(gpu_uuid="GPU-a", sentence="x", display_pids=[1]),
    )
    reasons, told = [r.code for r in judge(bad).reasons], [w.partition(":")[0] for w in warnings(bad)]
    assert not set(reasons) & set(told)
    assert len(reasons) == len(set(reasons))
    assert len(RULES) == len(set(RULES))


SUMS = [
    ("equal", {"a": 1.0, "b": 2.0}, 3.0, True),
    ("rounding", {"a": 0.1, "b": 0.2}, 0.3, True),
    ("one-missing", {"a": 1.0}, 3.0, False),
    ("one-too-many", {"a": 1.0, "b": 2.0}, 1.0, False),
    ("unknown-parts", None, 3.0, True),
    ("unknown-total", {"a": 1.0}, None, True),
]


@pytest.mark.parametrize(("parts", "total", "fits"), [r[1:] for r in SUMS], ids=[r[0] for r in SUMS])
def test_devices_must_add_up_to_the_total(parts: dict[str, float] | None, total: float | None, fits: bool) -> None:
    """A missing or an additional GPU is named with both figures."""
    problem = sum_problem(parts, total)
    assert (problem is None) is fits
    assert problem is None or f"{total:g} J" in problem
