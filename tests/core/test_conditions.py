"""What a GPU went through in the window: slow-downs by counter and by bit, drifts of thirds, jumps and gaps."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from fakes.nvml_script import HW_SLOWDOWN, HW_THERMAL, POWER_BRAKE, SW_POWER_CAP, SW_THERMAL
from fakes.tick_generator import Counter, Piece, record
from llenergymeasure.core.conditions import comparable_thirds, conditions, pace_drift, peak_power_w, slowdown
from llenergymeasure.core.contracts import EnergyRecord, Generation, Reading, Request, ThrottleCounters, Window
from llenergymeasure.core.energy_series import EnergySeries, Tick

A, B = "GPU-a", "GPU-b"
WINDOW = Window("window", 100.0, 130.0)
MS = 1_000_000  # ns


def reading(t_s: float, uuid: str = A, **fields: Any) -> Reading:
    return Reading(t_s=t_s, gpu_uuid=uuid, gpu_index=0, **fields)


def counters(*rows: tuple[float, int | None], uuid: str = A, cap: int | None = 0) -> list[ThrottleCounters]:
    """SW thermal time (ns) at instants, the other causes at 0."""
    return [ThrottleCounters(t, uuid, cap, ns, 0 if ns is not None else None, 0) for t, ns in rows]


def series(*pieces: Piece, jitter_s: float = 0.002, period_s: float = 0.1) -> EnergySeries:
    rows = record(pieces, Counter(period_s=period_s, poll_s=0.005), 90.0, 140.0)
    return EnergySeries(tuple(Tick(*row) for row in rows), jitter_s)


def batches(*starts_s: float, kinds: Sequence[int] = (0,)) -> list[Generation]:
    """Batches that follow each other, of as many different kinds as a pass has."""
    ends = [*starts_s[1:], WINDOW.end_s]
    return [
        Generation((Request(kinds[i % len(kinds)], (1,), 1),), ((1,),), a, b)
        for i, (a, b) in enumerate(zip(starts_s, ends, strict=True))
    ]


def known(energy: EnergyRecord | None, gpus: Sequence[dict[str, Any]] = (), uuids: Sequence[str] = (A,)) -> Any:
    return conditions(energy, WINDOW, [], {"gpus": list(gpus), "on_battery": None}, uuids)


COUNTED = [
    pytest.param(counters((99.0, 0), (131.0, 0)), 0.0, id="never"),
    pytest.param(counters((99.0, 5), (131.0, 5 + 3000 * MS)), 0.1, id="3 of 30 s"),
    pytest.param(counters((90.0, 0), (99.0, 9000 * MS), (131.0, 9000 * MS)), 0.0, id="before the window only"),
    pytest.param(counters((99.0, 0), (131.0, 0), (140.0, 9000 * MS)), 0.0, id="after it only"),
    pytest.param(counters((99.0, 0), (131.0, 32_000 * MS)), 1.0, id="always"),
]


@pytest.mark.parametrize(("rows", "share"), COUNTED)
def test_throttling_is_counted_by_the_driver_where_it_counts(rows: list[ThrottleCounters], share: float) -> None:
    """The time between the looks around the window, over the window; readings without a bit do not thin it out."""
    found = slowdown(rows, [reading(100.0 + i, throttle_reasons=0) for i in range(30)], WINDOW)
    assert found.throttled == pytest.approx(share, rel=0.07)
    assert found.source == "counters"


def test_causes_add_up_and_the_power_cap_stands_by_itself() -> None:
    """Half a cause and a quarter of another are three quarters; 100 % power cap are no throttling."""
    rows = [
        ThrottleCounters(100.0, A, 0, 0, 0, 0),
        ThrottleCounters(130.0, A, 30_000 * MS, 15_000 * MS, 7_500 * MS, 0),
    ]
    found = slowdown(rows, [], WINDOW)
    assert (found.throttled, found.power_cap) == (0.75, 1.0)


def test_a_hardware_slowdown_without_a_cause_is_seen_by_its_bit() -> None:
    """The driver counts no such time; where heat or brake show as well they are counted already."""
    bits = [HW_SLOWDOWN, HW_SLOWDOWN | HW_THERMAL, HW_SLOWDOWN | POWER_BRAKE, 0]
    found = slowdown(
        counters((99.0, 0), (131.0, 0)), [reading(101.0 + i, throttle_reasons=b) for i, b in enumerate(bits)], WINDOW
    )
    assert found.throttled == pytest.approx(0.25)


UNCOUNTED = [
    pytest.param([], id="no counters"),
    pytest.param(counters((99.0, None), (131.0, None)), id="not supported"),
    pytest.param(counters((99.0, 9), (131.0, 0)), id="went back"),
    pytest.param(counters((110.0, 0)), id="read once"),
]


@pytest.mark.parametrize("rows", UNCOUNTED)
def test_without_counters_the_bits_of_the_readings_tell(rows: list[ThrottleCounters]) -> None:
    """A share of readings; a sensor that gave nothing at an instant does not count."""
    bits = [0, SW_THERMAL, None, SW_POWER_CAP, SW_POWER_CAP]
    found = slowdown(rows, [reading(101.0 + i, throttle_reasons=b) for i, b in enumerate(bits)], WINDOW)
    assert (found.throttled, found.source) == (0.25, "event reasons")
    read_twice = len(rows) == 2  # the power cap's counter, which is there on its own
    assert found.power_cap == (0.0 if read_twice else 0.5)


def test_with_several_gpus_the_worst_one_counts() -> None:
    """One of two boards throttles: that is the run's share, with its limit."""
    energy = EnergyRecord(
        {}, throttle=(*counters((99.0, 0), (131.0, 0)), *counters((99.0, 0), (131.0, 3000 * MS), uuid=B))
    )
    found = known(energy, [{"uuid": A, "power_limit_w": 700.0}, {"uuid": B, "power_limit_w": 500.0}], (A, B))
    assert found.throttled_share == pytest.approx(0.1)
    assert found.power_limit_w == 500.0


def test_without_sensors_nothing_is_known() -> None:
    """Null, never 0: of a source without readings and of no source at all."""
    assert set(known(EnergyRecord({})).model_dump().values()) == {None}
    assert set(known(None).model_dump().values()) == {None}


THIRDS = [
    pytest.param([], (110.0, 120.0), id="no batches"),
    pytest.param(batches(100.0), None, id="one batch"),
    pytest.param(batches(100.0, 115.0), None, id="two batches"),
    pytest.param(batches(100.0, 112.0, 121.0), (112.0, 121.0), id="three batches"),
    pytest.param(batches(*range(100, 130)), (110.0, 120.0), id="many batches"),
    pytest.param(batches(*range(100, 130, 3), kinds=(0, 1)), (112.0, 118.0), id="passes of two batches"),
    pytest.param(batches(*range(100, 130, 5), kinds=(0, 1, 2)), (110.0, 120.0), id="two passes: by batches"),
]


@pytest.mark.parametrize(("work", "cuts"), THIRDS)
def test_thirds_are_cut_where_work_begins_anew(work: list[Generation], cuts: tuple[float, float] | None) -> None:
    """At passes, else at batches, nearest to the thirds of time; too little work has no thirds."""
    found = comparable_thirds(WINDOW, work)
    assert (found is None) if cuts is None else (found == ((100.0, cuts[0]), (cuts[1], 130.0)))


def test_drift_inside_a_batch_is_none_of_the_window() -> None:
    """Power that rises 20 % within every batch, alike in each, drifts by nothing."""
    pieces = [Piece(80.0, 100.0, 100.0, 100.0), Piece(130.0, 150.0, 100.0, 100.0)]
    pieces += [Piece(100.0 + 6 * i, 106.0 + 6 * i, 500.0, 600.0) for i in range(5)]
    energy = EnergyRecord({}, series={A: series(*pieces)})
    found = conditions(energy, WINDOW, batches(*[100.0 + 6 * i for i in range(5)]), {}, [A])
    assert found.power_drift == pytest.approx(0.0, abs=2e-3)


def test_pace_is_compared_where_batches_begin() -> None:
    """Three batches of 8 s, then three of 10 s, one token each: two thirds of equal work, the last slower by a fifth."""
    starts = [100.0 + 8 * i for i in range(3)] + [124.0 + 10 * i for i in range(3)]
    work = batches(*starts, kinds=range(6))
    window = Window("window", 100.0, 154.0)
    ends = [
        Generation(g.requests, g.output_token_ids, g.start_s, e)
        for g, e in zip(work, [*starts[1:], 154.0], strict=True)
    ]
    thirds = comparable_thirds(window, ends)
    assert thirds == ((100.0, 116.0), (134.0, 154.0))
    assert pace_drift(ends, thirds) == pytest.approx(8 / 10 - 1)
    assert pace_drift([], thirds) is None
    assert pace_drift(ends, None) is None
    for tokens in ({"requests": (Request(5, (1, 1), 1),)}, {"output_token_ids": ((1, 1),)}):
        longer = [*ends[:-1], replace(ends[-1], **tokens)]
        assert pace_drift(longer, thirds) is None, "a third with more work per batch is no slower for that"


def test_drifts_by_hand() -> None:
    """Power from 500 to 530 W: the thirds' middles are 505 and 525 W. Clocks and temperature by their readings."""
    readings = tuple(
        reading(100.5 + i, sm_clock_mhz=1800.0 - 3 * i, temperature_c=50.0 + i // 10 * 6) for i in range(30)
    )
    found = known(
        EnergyRecord(
            {},
            readings=readings,
            series={
                A: series(
                    Piece(80.0, 100.0, 500.0, 500.0),
                    Piece(100.0, 130.0, 500.0, 530.0),
                    Piece(130.0, 150.0, 530.0, 530.0),
                )
            },
        )
    )
    assert found.power_drift == pytest.approx(525 / 505 - 1, abs=1e-3)
    assert found.clock_drift == pytest.approx((1800 - 3 * 24.5) / (1800 - 3 * 4.5) - 1, abs=1e-3)
    assert found.temperature_change_c == 12.0
    assert found.temperature_c == pytest.approx(56.0)
    assert found.sm_clock_mhz == pytest.approx(1800 - 3 * 14.5)


def test_a_jump_of_the_counter_stands_out_from_its_power() -> None:
    """200 J too many between two ticks at 600 W: far above 1.3 times the limit of 700 W; elsewhere below it."""
    steady = series(Piece(80.0, 150.0, 600.0, 600.0))
    jumped = EnergySeries(
        tuple(Tick(t.before_s, t.after_s, t.joules + (200.0 if t.t_s > 115 else 0.0)) for t in steady.ticks), 0.002
    )
    limits = [{"uuid": A, "power_limit_w": 700.0}]
    clean, bad = (known(EnergyRecord({}, series={A: s}), limits) for s in (steady, jumped))
    assert clean.peak_above_limit < 600 / 700
    assert bad.peak_above_limit > 2
    assert bad.peak_power_w == pytest.approx(700 * bad.peak_above_limit)
    outside = Window("window", 120.0, 130.0)
    assert (peak_power_w(jumped, outside) or 0.0) < 700


def test_short_ticks_that_jitter_are_no_jump() -> None:
    """At 20 ms a tick may come 8 ms early: the best estimate would say 1000 W and more, the certain power does not."""
    rows = record([Piece(0.0, 200.0, 680.0, 680.0)], Counter(period_s=0.02, poll_s=0.005, jitter_s=0.004), 99.0, 131.0)
    found = EnergySeries(tuple(Tick(*row) for row in rows), 0.004)
    assert max(w for _, w in found.powers(100.0, 130.0)) > 1.3 * 700
    assert (peak_power_w(found, WINDOW) or 0.0) < 700


def test_gaps_inside_the_window_are_told() -> None:
    """Six ticks in a row that were not seen."""
    whole = series(Piece(80.0, 150.0, 600.0, 600.0))
    holed = EnergySeries(tuple(t for t in whole.ticks if not 115.02 < t.t_s < 115.62), 0.002)
    assert known(EnergyRecord({}, series={A: whole})).interior_gap_ticks == 0
    assert known(EnergyRecord({}, series={A: holed})).interior_gap_ticks == 6


SETTINGS = [
    pytest.param(
        [{"uuid": A, "persistence_mode": True, "ecc_enabled": True, "ecc_pending": True}],
        (True, False),
        id="as it should be",
    ),
    pytest.param(
        [{"uuid": A, "persistence_mode": False, "ecc_enabled": True, "ecc_pending": False}], (False, True), id="neither"
    ),
    pytest.param(
        [{"uuid": B, "persistence_mode": False, "ecc_enabled": True, "ecc_pending": False}],
        (None, None),
        id="another board",
    ),
    pytest.param(
        [{"uuid": A, "persistence_mode": None, "ecc_enabled": None, "ecc_pending": None}], (None, None), id="not told"
    ),
]


@pytest.mark.parametrize(("gpus", "wanted"), SETTINGS)
def test_settings_are_those_of_this_runs_gpus(
    gpus: list[dict[str, Any]], wanted: tuple[bool | None, bool | None]
) -> None:
    """Persistence mode and an ECC switch that waits; of other boards nothing."""
    found = known(EnergyRecord({}), gpus)
    assert (found.persistence_mode, found.ecc_pending) == wanted
