"""One row per second and GPU from readings and ticks: means, extremes, cumulative values, missing ones as null."""

from typing import Any

import pyarrow as pa
import pytest

from llenergymeasure import timeseries
from llenergymeasure.core.contracts import Generation, Reading, Request, Window
from llenergymeasure.core.energy_series import EnergySeries, Tick

A, B = "GPU-a", "GPU-b"
DOCUMENTED = [
    "timestamp_s", "gpu_index", "gpu_uuid", "power_w", "power_min_w", "power_max_w", "temperature_c",
    "memory_used_mb", "memory_total_mb", "sm_utilisation_pct", "sm_clock_mhz", "mem_clock_mhz", "throttle_reasons",
    "energy_j", "output_tokens",
]  # fmt: skip


def _reading(t_s: float, uuid: str = A, index: int = 0, **fields: Any) -> Reading:
    return Reading(t_s=t_s, gpu_uuid=uuid, gpu_index=index, **fields)


def _series(watts: float) -> EnergySeries:
    return EnergySeries(tuple(Tick(t / 10, t / 10, watts * t / 10) for t in range(1000)))


def _batch(end_s: float, tokens: int) -> Generation:
    return Generation((Request(0, (1,), tokens),), ((1,) * tokens,), end_s - 0.5, end_s)


def _rows(window: Window, readings: list[Reading], **more: Any) -> list[dict[str, Any]]:
    return timeseries.rows(window, readings, more.get("series", {}), more.get("generations", ()))


def test_the_columns_are_the_documented_ones() -> None:
    """Names and order of requirements §5, also in a table without any row."""
    assert timeseries.table([]).column_names == DOCUMENTED == list(timeseries.COLUMNS)
    assert timeseries.table([]).num_rows == 0


@pytest.mark.parametrize(("length_s", "seconds"), [(0.4, 1), (1.0, 1), (1.01, 2), (3.0, 3), (3.7, 4)], ids=str)
def test_each_started_second_has_a_row_per_gpu(length_s: float, seconds: int) -> None:
    """Seconds count from window start; every GPU that was read has its row in each."""
    readings = [_reading(10.1), _reading(10.2, B, 1)]
    rows = _rows(Window("window", 10.0, 10.0 + length_s), readings)
    assert [(r["timestamp_s"], r["gpu_index"], r["gpu_uuid"]) for r in rows] == [
        (float(s), i, u) for s in range(seconds) for i, u in ((0, A), (1, B))
    ]


def test_a_second_holds_mean_and_extremes_of_its_readings() -> None:
    """Power as mean, least and most; the others as means; readings of other seconds and GPUs stay out."""
    readings = [
        _reading(9.9, power_w=1.0),
        _reading(10.0, power_w=100.0, temperature_c=50.0, sm_clock_mhz=1000.0),
        _reading(10.5, power_w=300.0, temperature_c=60.0, sm_clock_mhz=2000.0),
        _reading(10.6, B, 1, power_w=9999.0),
        _reading(11.0, power_w=700.0),
    ]
    first, _, second, _ = _rows(Window("window", 10.0, 12.0), readings)
    assert (first["power_w"], first["power_min_w"], first["power_max_w"]) == (200.0, 100.0, 300.0)
    assert (first["temperature_c"], first["sm_clock_mhz"]) == (55.0, 1500.0)
    assert (second["power_w"], second["power_min_w"], second["power_max_w"]) == (700.0, 700.0, 700.0)


def test_event_bits_of_a_second_are_united() -> None:
    """Any event within the second is in its row; no reading of events is null, none set is 0."""
    readings = [
        _reading(10.1, throttle_reasons=0x4),
        _reading(10.9, throttle_reasons=0x40),
        _reading(11.5),
        _reading(12.5, throttle_reasons=0),
    ]
    rows = _rows(Window("window", 10.0, 13.0), readings)
    assert [r["throttle_reasons"] for r in rows] == [0x44, None, 0]


def test_a_second_without_readings_is_null_not_zero() -> None:
    """A gap in the readings leaves nulls."""
    rows = _rows(Window("window", 10.0, 12.0), [_reading(10.1, power_w=5.0)])
    assert (rows[1]["power_w"], rows[1]["power_min_w"], rows[1]["temperature_c"]) == (None, None, None)


def test_energy_is_cumulative_from_window_start() -> None:
    """At the end of each second, and of the window in the last: 200 W give 200, 400, 500 J."""
    rows = _rows(Window("window", 10.0, 12.5), [_reading(10.1)], series={A: _series(200.0)})
    assert [r["energy_j"] for r in rows] == pytest.approx([200.0, 400.0, 500.0])


def test_without_a_counter_energy_is_null() -> None:
    """A GPU that has readings but no ticks has no joules in its rows."""
    rows = _rows(Window("window", 10.0, 11.0), [_reading(10.1), _reading(10.1, B, 1)], series={A: _series(200.0)})
    assert [r["energy_j"] is None for r in rows] == [False, True]


def test_output_tokens_are_cumulative_over_ended_batches() -> None:
    """A batch counts from the second in which it ended; the last row has them all."""
    batches = [_batch(10.9, 5), _batch(11.0, 3), _batch(11.2, 7), _batch(12.5, 2)]
    rows = _rows(Window("window", 10.0, 12.5), [_reading(10.1)], generations=batches)
    assert [r["output_tokens"] for r in rows] == [8, 15, 17]


def test_a_table_keeps_types_and_nulls() -> None:
    """Numbers stay numbers, unknown stays null, in the documented types."""
    table = timeseries.table(_rows(Window("window", 10.0, 11.0), [_reading(10.1, power_w=5.0)]))
    assert table.schema.field("gpu_index").type == pa.int32()
    assert table.schema.field("gpu_uuid").type == pa.string()
    assert table.schema.field("output_tokens").type == pa.int64()
    assert table.to_pylist()[0]["temperature_c"] is None


def test_a_long_window_is_read_once() -> None:
    """A day has 86,400 rows and ten times as many readings: these are gone through a few times, not once per row."""

    class Counted(list[Reading]):
        rounds = 0

        def __iter__(self) -> Any:
            Counted.rounds += 1
            return super().__iter__()

    readings = Counted(_reading(0.5 + t, power_w=float(t)) for t in range(3600))
    found = _rows(Window("window", 0.0, 3600.0), readings)
    assert [r["power_w"] for r in found] == [float(t) for t in range(3600)]
    assert Counted.rounds <= 3
