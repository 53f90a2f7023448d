r"""Turns flat rows into a CSV text or a typed table; a column's unit is told by the end of its name.

CSV is UTF-8 after RFC 4180 with `\n` between lines and without a locale: a point in numbers, `true` and `false`, times
in UTC. An empty cell is null. A text that a spreadsheet would take for a formula, since it begins with one of
`= + - @`, tab or carriage return, gets an apostrophe before it, as OWASP advises; numbers are never touched, and
Parquet keeps every text as it is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from llenergymeasure.core.errors import BackendMissingError

Kind = Literal["text", "integer", "number", "boolean", "time"]
Rows = Sequence[Mapping[str, Any]]

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
QUOTE, SPECIAL = '"', frozenset(',"\r\n')
UNITS = {
    "energy_per_output_token_j": "J/token",
    "energy_adjusted_per_output_token_j": "J/token",
    "energy_per_total_token_j": "J/token",
    "energy_per_prefill_token_j": "J/token",
    "energy_per_decode_token_j": "J/token",
    "energy_per_decode_and_context_token_j": "J/token²",
    "energy_per_request_j": "J/request",
    "tokens_per_second_per_watt": "tokens/J",
    "tokens_per_joule": "tokens/J",
    "tokens_per_second": "tokens/s",
    "requests_per_second": "requests/s",
    "_ms_per_token": "ms/token",
    "_ms_per_step": "ms/step",
    "_tokens": "tokens",
    "_len": "tokens",
    "_qps": "requests/s",
    "_seconds": "s",
    ".seconds": "s",
    "_bytes": "B",
    "_flops": "FLOP",
    "flops.value": "FLOP",
    "_pct": "%",
    "_mhz": "MHz",
    "_mb": "MB",
    "_gb": "GB",
    "_ms": "ms",
    "_j": "J",
    "_w": "W",
    "_s": "s",
    "_c": "°C",
    "_g": "g",
}
"""Unit by the end of a name, longer ends first; what has none of these is a count or a share."""


@dataclass(frozen=True)
class Column:
    """A column of a table; its kind holds also where no row has a value."""

    name: str
    kind: Kind

    @property
    def unit(self) -> str | None:
        """Unit of a number; "1" for counts and shares, None for what is no quantity."""
        if self.kind == "time":
            return "UTC"
        if self.kind not in ("integer", "number"):
            return None
        return next((unit for end, unit in UNITS.items() if self.name.endswith(end)), "1")


def names_in(rows: Rows) -> list[str]:
    """The names of all rows in the order in which they come up."""
    return list(dict.fromkeys(name for row in rows for name in row))


def csv_text(rows: Rows, names: Iterable[str] | None = None) -> str:
    """A header and a line per row; `names` chooses the columns, None takes all."""
    names = names_in(rows) if names is None else list(names)
    lines = [_line(names), *(_line([_cell(row.get(name)) for name in names]) for row in rows)]
    return "\n".join([*lines, ""])


def _line(cells: Sequence[str]) -> str:
    """Cells with what must be quoted in quotes; the csv module would leave a carriage return bare."""
    quoted = [f'"{cell.replace(QUOTE, QUOTE * 2)}"' if SPECIAL.intersection(cell) else cell for cell in cells]
    return ",".join(quoted) or '""'  # an empty line is no row to many readers


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)  # the shortest text that reads back as the same number
    if isinstance(value, datetime):
        return in_utc(value).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
    text = str(value)
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def in_utc(time: datetime) -> datetime:
    """A time as UTC; one without a zone is UTC already, as all times of llem are."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def arrow_table(rows: Rows, declared: Iterable[Column]) -> Any:
    """A pyarrow.Table with the columns of the rows, each of its declared kind, its unit in the field's metadata.

    Columns that are not declared are text.
    """
    import pyarrow as pa

    types = {
        "text": pa.string(),
        "integer": pa.int64(),
        "number": pa.float64(),
        "boolean": pa.bool_(),
        "time": pa.timestamp("us", tz="UTC"),
    }
    known = {c.name: c for c in declared}
    columns = [known.get(name) or Column(name, "text") for name in names_in(rows)]
    fields = [pa.field(c.name, types[c.kind], metadata={"unit": c.unit} if c.unit else None) for c in columns]
    values = [pa.array([row.get(c.name) for row in rows], type=f.type) for c, f in zip(columns, fields, strict=True)]
    return pa.Table.from_arrays(values, schema=pa.schema(fields))


def data_frame(rows: Rows, declared: Iterable[Column]) -> Any:
    """A pandas.DataFrame of the rows in which whole numbers and truth values stay what they are beside nulls.

    Raises:
        BackendMissingError: pandas is not installed.

    """
    try:
        import pandas as pd
    except ImportError as err:
        raise BackendMissingError("a data frame needs pandas; run: pip install pandas") from err
    import pyarrow as pa

    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    return arrow_table(rows, declared).to_pandas(types_mapper=nullable.get)
