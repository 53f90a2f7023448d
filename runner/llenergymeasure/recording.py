"""Writes what the sensors recorded in a run as plain JSON and reads it back, so that a run can be judged again.

Rows of one kind are kept as a table of columns; instants count from the window's start, so that a recording means the
same on every machine.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar

from llenergymeasure.core.contracts import (
    DeviceEnergy,
    EnergyRecord,
    Occupants,
    PowerSample,
    Reading,
    SensorFacts,
    ThrottleCounters,
)
from llenergymeasure.core.energy_series import EnergySeries, Tick

FORMAT = "llem-recording-2"
READ = ("llem-recording-1", FORMAT)
"""Formats that can be read; the first one had no facts of the sensors and nothing of the run beside them."""
INSTANTS = frozenset({"t_s", "before_s", "after_s", "start_s", "end_s"})
Row = TypeVar("Row")
DECIMALS = 6  # a microsecond: less than any sensor's clock tells


def to_json(record: EnergyRecord, zero_s: float) -> dict[str, Any]:
    """The whole record; `zero_s` is the instant that becomes 0 (the window's start), s of CLOCK_MONOTONIC."""
    return {
        "format": FORMAT,
        "windows": {name: _table(parts, zero_s) for name, parts in record.windows.items()},
        "ticks": {uuid: _table(s.ticks, zero_s) for uuid, s in record.series.items()},
        "series": {uuid: _plain(s, leave_out=("ticks",)) for uuid, s in record.series.items()},
        "samples": {uuid: _table(rows, zero_s) for uuid, rows in record.samples.items()},
        "readings": _table(record.readings, zero_s),
        "sensors": {uuid: asdict(facts) for uuid, facts in record.sensors.items()},
        "occupants": _table(record.occupants, zero_s),
        "throttle": _table(record.throttle, zero_s),
        "host_energy_j": record.host_energy_j,
        "independent": record.independent,
        "warnings": list(record.warnings),
    }


def from_json(raw: Mapping[str, Any]) -> EnergyRecord:
    """The record back; its instants count from the window's start.

    Raises:
        ValueError: It is not a recording of a known format, or parts of it are missing or not understood.

    """
    told = raw.get("format") if isinstance(raw, Mapping) else None
    if told not in READ:
        raise ValueError(f"not a recording: its format is {told!r}, expected {' or '.join(READ)}")
    try:
        return _record(raw)
    except KeyError as err:
        raise ValueError(f"the recording cannot be read: it lacks {err}") from err
    except (TypeError, AttributeError) as err:
        raise ValueError(f"the recording cannot be read: {err}") from err


def _record(raw: Mapping[str, Any]) -> EnergyRecord:
    ticks = {uuid: _rows(Tick, table) for uuid, table in raw["ticks"].items()}
    return EnergyRecord(
        windows={name: _rows(DeviceEnergy, table) for name, table in raw["windows"].items()},
        series={uuid: _series(ticks[uuid], facts) for uuid, facts in raw["series"].items()},
        samples={uuid: _rows(PowerSample, table) for uuid, table in raw["samples"].items()},
        sensors={uuid: _facts(facts) for uuid, facts in raw.get("sensors", {}).items()},
        readings=_rows(Reading, raw["readings"]),
        occupants=_rows(Occupants, raw["occupants"]),
        throttle=_rows(ThrottleCounters, raw["throttle"]),
        host_energy_j=raw["host_energy_j"],
        independent=raw["independent"],
        warnings=tuple(raw["warnings"]),
    )


def _table(rows: Iterable[Any], zero_s: float) -> dict[str, Any]:
    """Rows of one dataclass as columns; columns in which every row has the field's default are left out."""
    listed = list(rows)
    if not listed:
        return {}
    columns: dict[str, Any] = {}
    for f in fields(listed[0]):
        values = [getattr(row, f.name) for row in listed]
        if any(v != f.default for v in values):
            columns[f.name] = [_value(f.name, v, zero_s) for v in values]
    return columns


def _value(name: str, value: Any, zero_s: float) -> Any:
    if name in INSTANTS and value is not None:
        return round(value - zero_s, DECIMALS)
    if isinstance(value, float):
        return round(value, DECIMALS)
    return list(value) if isinstance(value, tuple) else value


def _rows(kind: type[Row], table: Mapping[str, Sequence[Any]]) -> tuple[Row, ...]:
    names = list(table)
    _must_know(kind, names)
    if len({len(column) for column in table.values()}) > 1:
        raise ValueError(f"the recording cannot be read: columns of {kind.__name__} differ in length")
    cells = ([tuple(v) if isinstance(v, list) else v for v in column] for column in table.values())
    return tuple(kind(**dict(zip(names, row, strict=True))) for row in zip(*cells, strict=True))


def _series(ticks: tuple[Tick, ...], values: Mapping[str, Any]) -> EnergySeries:
    _must_know(EnergySeries, values)
    return EnergySeries(ticks=ticks, **values)


def _facts(values: Mapping[str, Any]) -> SensorFacts:
    """What was told of a sensor; facts that a newer version added are left out, no joule hangs on them."""
    known = {f.name for f in fields(SensorFacts)}
    return SensorFacts(**{name: value for name, value in values.items() if name in known})


def _must_know(kind: Any, names: Iterable[str]) -> None:
    """A field that a newer version added may change what the others mean: without it no joule is right."""
    if unknown := sorted(set(names) - {f.name for f in fields(kind)}):
        told = ", ".join(unknown)
        raise ValueError(f"the recording cannot be read: this version knows no {told} of {kind.__name__}, a newer may")


def _plain(record: Any, *, leave_out: Sequence[str]) -> dict[str, Any]:
    assert is_dataclass(record)
    return {f.name: getattr(record, f.name) for f in fields(record) if f.name not in leave_out}
