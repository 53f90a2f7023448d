"""The judgement on an energy: the table of measurement.md §6 as far as a single record can be judged."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.core.verdict import Evidence, judge, relative_uncertainty, warnings

CLEAN = Evidence(source_kind="counter", energy_j=1000.0, energy_reason=None, window_s=60.0, relative_comparison=0.0196)

JUDGED: list[tuple[str, Evidence, str, list[str]]] = [
    ("clean", CLEAN, "valid", []),
    ("simulated", replace(CLEAN, source_kind="simulated"), "valid", []),
    ("estimate", replace(CLEAN, source_kind="estimate"), "estimated", ["no_counter"]),
    ("no-source", replace(CLEAN, source_kind=None, energy_j=None), "unmeasured", ["no_energy"]),
    ("constant", replace(CLEAN, energy_j=None, energy_reason="counter_constant: x"), "unmeasured", ["no_energy"]),
    ("reset", replace(CLEAN, energy_j=None, energy_reason="a: counter_reset: x"), "invalid", ["counter_reset"]),
    ("gap", replace(CLEAN, energy_j=None, energy_reason="a: sample_gap: x"), "invalid", ["sample_gap"]),
    ("window-5", replace(CLEAN, window_s=5.0), "valid", []),
    ("window-below-5", replace(CLEAN, window_s=4.99), "invalid", ["window_too_short"]),
    ("uncertain-5", replace(CLEAN, relative_comparison=0.05), "valid", []),
    ("uncertain-above-5", replace(CLEAN, relative_comparison=0.0501), "invalid", ["imprecise"]),
    ("uncertainty-unknown", replace(CLEAN, relative_comparison=None), "valid", []),
    ("throttled-5", replace(CLEAN, throttled_share=0.05), "valid", []),
    ("throttled-above-5", replace(CLEAN, throttled_share=0.051), "invalid", ["throttled"]),
    ("dummy", replace(CLEAN, dummy_values=True), "invalid", ["unrealistic_values"]),
    ("dummy-allowed", replace(CLEAN, dummy_values=True, allow_dummy=True), "valid", []),
    ("several", replace(CLEAN, window_s=1.0, throttled_share=0.5, relative_comparison=0.1, dummy_values=True),
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
    ("throttled-a-little", replace(CLEAN, throttled_share=0.01), ["throttled"]),
    ("throttled-a-lot-is-invalid-instead", replace(CLEAN, throttled_share=0.06), []),
]


@pytest.mark.parametrize(("evidence", "codes"), [r[1:] for r in WARNED], ids=[r[0] for r in WARNED])
def test_condition_below_its_limit_is_a_warning(evidence: Evidence, codes: list[str]) -> None:
    """A condition that leaves the verdict alone is said, once, as `code: what and fix`."""
    found = warnings(evidence)
    assert [w.partition(": ")[0] for w in found] == codes
    assert all("; " in w for w in found)


@given(
    st.builds(
        Evidence,
        source_kind=st.sampled_from(["counter", "estimate", "simulated", None]),
        energy_j=st.none() | st.floats(0.001, 1e9),
        energy_reason=st.none() | st.sampled_from(["counter_reset: x", "MIG slice", "sample_gap: y"]),
        window_s=st.floats(0.001, 1e5),
        relative_comparison=st.none() | st.floats(0, 1),
        throttled_share=st.floats(0, 1),
        dummy_values=st.booleans(),
        allow_dummy=st.booleans(),
    )
)
def test_no_evidence_gives_a_state_without_its_reason(evidence: Evidence) -> None:
    """Valid has no reason, everything else has one; without joules nothing is valid or estimated."""
    verdict = judge(evidence)
    assert (verdict.state == "valid") == (verdict.reasons == [])
    if evidence.energy_j is None:
        assert verdict.state in ("invalid", "unmeasured")


def test_relative_uncertainty_by_hand() -> None:
    """3 J of 1000 J and 1 % between runs: edge 0.3 %, comparison 1.96 * 1.044 % = 2.046 %, absolute 9.72 %."""
    found = relative_uncertainty(3.0, 1000.0)
    assert found is not None
    edge, comparison, absolute = found
    assert edge == pytest.approx(0.003)
    assert comparison == pytest.approx(1.96 * math.sqrt(0.003**2 + 0.01**2), rel=1e-9)
    assert comparison == pytest.approx(0.02046, abs=1e-5)
    assert absolute == pytest.approx(math.sqrt(0.095**2 + comparison**2), rel=1e-9)
    assert absolute == pytest.approx(0.0972, abs=1e-4)


NO_UNCERTAINTY = [("no-edge", None, 1000.0), ("no-energy", 1.0, None), ("zero-energy", 1.0, 0.0)]


@pytest.mark.parametrize(("edge", "energy"), [r[1:] for r in NO_UNCERTAINTY], ids=[r[0] for r in NO_UNCERTAINTY])
def test_uncertainty_of_nothing_is_none(edge: float | None, energy: float | None) -> None:
    """Where energy or edge is unknown there is no figure, above all not 0 %."""
    assert relative_uncertainty(edge, energy) is None
