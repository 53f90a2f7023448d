"""What a GPU went through in the window: slow-downs by counter and by bit, drifts of thirds, jumps and gaps."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from fakes.nvml_script import HW_SLOWDOWN, HW_THERMAL, POWER_BRAKE, SW_POWER_CAP, SW_THERMAL
from fakes.tick_generator import Counter, Piece, record, true_joules
from fakes.ticks import thinned
from llenergymeasure.core.conditions import conditions, peak_power_w
from llenergymeasure.core.contracts import EnergyRecord, Generation, Reading, Request, ThrottleCounters, Window
from llenergymeasure.core.drifts import comparable_thirds, pace_drift
from llenergymeasure.core.energy_series import EnergySeries, Tick
from llenergymeasure.core.slowdowns import causes, slowdown

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


ONE_MISSING = [
    pytest.param((None, 9_000 * MS, 0), [], (0.3, "counters"), id="heat of the software not counted, no readings"),
    pytest.param((None, 9_000 * MS, 0), [0] * 30, (0.3, "counters"), id="the bits show less"),
    pytest.param((0, 9_000 * MS, None), [0] * 30, (0.3, "counters"), id="the power brake not counted"),
    pytest.param((None, 1_500 * MS, 0), [SW_THERMAL, 0], (0.5, "event reasons"), id="the bits show more"),
    pytest.param((None, 0, 0), [], (None, None), id="what is counted did not act, and nothing tells of the rest"),
]


@pytest.mark.parametrize(("counted_ns", "bits", "wanted"), ONE_MISSING)
def test_a_counter_that_is_missing_takes_nothing_from_the_others(
    counted_ns: tuple[int | None, ...], bits: list[int], wanted: tuple[float | None, str | None]
) -> None:
    """What the known counters add up to, or what the readings' bits show if that is more."""
    start = ThrottleCounters(100.0, A, 0, *(None if ns is None else 0 for ns in counted_ns))
    found = slowdown(
        [start, ThrottleCounters(130.0, A, 0, *counted_ns)],
        [reading(100.5 + i, throttle_reasons=b) for i, b in enumerate(bits)],
        WINDOW,
    )
    assert (found.throttled, found.source) == wanted


CAUSES = [
    pytest.param(counters((99.0, 0), (131.0, 300 * MS)), [0], {"sw_thermal"}, set(), id="counted, in no reading"),
    pytest.param(counters((99.0, 0), (131.0, 0)), [POWER_BRAKE], {"power_brake"}, set(), id="read, not counted"),
    pytest.param(counters((99.0, 0), (131.0, 0), cap=None), [], set(), {"sw_power_cap", "hw_slowdown"}, id="not told"),
    pytest.param([], [0], set(), set(), id="readings alone"),
    pytest.param([], [], set(), {"sw_power_cap", "hw_slowdown", "sw_thermal", "hw_thermal", "power_brake"}, id="neither"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "bits", "acted", "unknown"), CAUSES)
def test_a_cause_acted_if_a_reading_or_a_counter_says_so(
    rows: list[ThrottleCounters], bits: list[int], acted: set[str], unknown: set[str]
) -> None:
    """False only where something told and nothing showed it; the driver counts no hardware slow-down by itself."""
    found = causes(rows, [reading(110.0, throttle_reasons=b) for b in bits], WINDOW)
    assert {name for name, value in found.items() if value} == acted
    assert {name for name, value in found.items() if value is None} == unknown


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
    pytest.param(batches(100.0003), None, id="one batch, a moment after the window"),
    pytest.param(batches(100.0003, 115.0), None, id="two batches, likewise"),
    pytest.param(batches(100.0, 112.0, 121.0), (112.0, 121.0), id="three batches"),
    pytest.param(batches(100.0003, 122.0, 126.0), (122.0, 126.0), id="three batches, the first a long one"),
    pytest.param(batches(*range(100, 130)), (110.0, 120.0), id="many batches"),
    pytest.param(batches(*range(100, 130, 3), kinds=(0, 1)), (112.0, 118.0), id="passes of two batches"),
    pytest.param(batches(*range(100, 130, 5), kinds=(0, 1, 2)), (110.0, 120.0), id="two passes: by batches"),
]


@pytest.mark.parametrize(("work", "cuts"), THIRDS)
def test_thirds_are_cut_where_work_begins_anew(work: list[Generation], cuts: tuple[float, float] | None) -> None:
    """At passes, else at batches, nearest to the thirds of time; too little work has no thirds."""
    found = comparable_thirds(WINDOW, work)
    assert (found is None) if cuts is None else (found == ((100.0, cuts[0]), (cuts[1], 130.0)))


@pytest.mark.parametrize(
    ("starts", "drift"),
    [
        pytest.param((100.0003, 115.0), None, id="two batches"),
        pytest.param((100.0003, 122.0, 126.0), 0.0, id="a long one first"),
    ],
)
def test_a_steady_window_of_few_batches_does_not_drift(starts: tuple[float, ...], drift: float | None) -> None:
    """600 W from edge to edge; the moment before the first batch is no third of the window."""
    quiet = (Piece(80.0, 100.0, 120.0, 120.0), Piece(100.0, 130.0, 600.0, 600.0), Piece(130.0, 150.0, 120.0, 120.0))
    found = conditions(EnergyRecord({}, series={A: series(*quiet)}), WINDOW, batches(*starts), {}, [A])
    assert found.power_drift == (drift if drift is None else pytest.approx(drift, abs=0.01))


@pytest.mark.parametrize("starts", [(100.0003,), (100.0003, 115.0)], ids=["one batch", "two batches"])
def test_clocks_and_temperature_are_compared_however_few_the_batches(starts: tuple[float, ...]) -> None:
    """By thirds of time: clocks from 1800 MHz down by 10 MHz/s, 50 °C and up by 1 °C/s."""
    readings = tuple(reading(100.5 + i, sm_clock_mhz=1795.0 - 10 * i, temperature_c=50.5 + i) for i in range(30))
    energy = EnergyRecord({}, readings=readings, series={A: series(Piece(80.0, 150.0, 600.0, 600.0))})
    found = conditions(energy, WINDOW, batches(*starts), {}, [A])
    assert (found.power_drift, found.pace_drift) == (None, None)
    assert found.clock_drift == pytest.approx(1550 / 1750 - 1)
    assert found.temperature_change_c == pytest.approx(20.0)


def test_clocks_that_a_prefill_lowers_are_compared_at_batches() -> None:
    """Eight batches whose first half runs at lower clocks, which thirds of time would hold in unequal parts."""
    readings = tuple(
        reading(t, sm_clock_mhz=1400.0 if (t - 100.0) % 3.75 < 1.875 else 1980.0)
        for t in (100.05 + 0.1 * i for i in range(300))
    )
    work = batches(*[100.0 + 3.75 * i for i in range(8)])
    found = conditions(EnergyRecord({}, readings=readings), WINDOW, work, {}, [A])
    assert found.clock_drift == pytest.approx(0.0, abs=0.01)


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
    faulty = jumped(steady, 115.0, 200.0)
    limits = [{"uuid": A, "power_limit_w": 700.0}]
    clean, bad = (known(EnergyRecord({}, series={A: s}), limits) for s in (steady, faulty))
    assert clean.peak_above_limit < 600 / 700
    assert bad.peak_above_limit > 2
    assert bad.peak_power_w == pytest.approx(700 * bad.peak_above_limit)
    outside = Window("window", 120.0, 130.0)
    assert (peak_power_w(faulty, outside) or 0.0) < 700


def jumped(steady: EnergySeries, at_s: float, joules: float) -> EnergySeries:
    """The counter shows so much more from an instant on."""
    ticks = (replace(t, joules=t.joules + joules * (t.t_s > at_s)) for t in steady.ticks)
    return EnergySeries(tuple(ticks), steady.jitter_s)


AT_THE_EDGES = [
    pytest.param(99.98, True, id="in the last whole tick before the start"),
    pytest.param(100.08, True, id="in the tick that holds the start"),
    pytest.param(129.98, True, id="in the tick that holds the end"),
    pytest.param(130.18, True, id="in the first whole tick after the end"),
    pytest.param(99.5, False, id="in the guard before"),
    pytest.param(130.5, False, id="in the guard behind"),
]


@pytest.mark.parametrize(("at_s", "seen"), AT_THE_EDGES)
def test_a_jump_is_found_in_every_tick_that_the_energy_comes_out_of(at_s: float, seen: bool) -> None:
    """A quiet edge is read at the last tick but one before the work and the second one after it."""
    edge_s = 100.03
    window = Window("window", edge_s, 130.03)
    load = (Piece(80.0, edge_s, 130.0, 130.0), Piece(edge_s, 130.03, 600.0, 600.0), Piece(130.03, 150.0, 130.0, 130.0))
    found = peak_power_w(jumped(series(*load), at_s, 200.0), window) or 0.0
    assert (found > 1.3 * 700) is seen
    if seen:
        bad, good = (jumped(series(*load), at_s, j).between(edge_s, 130.03, "quiet").value for j in (200.0, 0.0))
        assert bad is not None
        assert good is not None
        assert bad - good > 1.0, "a tick that the energy does not come out of need not be looked at"


def buffer(*pieces: Piece) -> list[tuple[float, float]]:
    """The driver's samples of a load, one per 20 ms."""
    return [(t, true_joules(pieces, t - 0.02, t) / 0.02) for t in (91.0 + 0.02 * i for i in range(2400))]


def test_ticks_that_were_not_read_do_not_dilute_a_jump() -> None:
    """150 J more in one of ten ticks are no 900 W between two that were read: the samples tell that it was one tick."""
    load = Piece(80.0, 150.0, 600.0, 600.0)
    sparse, samples = thinned(series(load), 101.0, 129.0), buffer(load)
    bad = jumped(sparse, 115.0, 150.0)
    assert (peak_power_w(bad, WINDOW) or 0.0) < 1.3 * 700
    assert (peak_power_w(bad, WINDOW, samples) or 0.0) > 1.3 * 700
    assert (peak_power_w(sparse, WINDOW, samples) or 0.0) < 700
    holed = [s for s in samples if not 114.0 < s[0] < 116.0]
    assert (peak_power_w(bad, WINDOW, holed) or 0.0) < 1.3 * 700, "samples with holes explain nothing"


def test_a_prefill_between_two_ticks_that_were_read_is_no_jump() -> None:
    """A second at 690 W amid 350 W is 340 J more than its neighbours', but not more than the samples show."""
    load = (Piece(80.0, 115.2, 350.0, 350.0), Piece(115.2, 116.2, 690.0, 690.0), Piece(116.2, 150.0, 350.0, 350.0))
    sparse = thinned(series(*load), 101.0, 129.0)
    assert (peak_power_w(sparse, WINDOW, buffer(*load)) or 0.0) < 700


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
