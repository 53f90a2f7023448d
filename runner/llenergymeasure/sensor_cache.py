"""What self-tests found out about this machine's energy counters, kept in the user's cache by GPU and driver."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter, ValidationError

from llenergymeasure import cache_file
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.step_response import Lag
from llenergymeasure.core.tick_times import Jitter
from llenergymeasure.nvml_sampling import driver_version


class SelfTest(BaseModel):
    """Findings about one GPU's energy counter; times in s, None where they could not be found, with a reason.

    `format` 1, without the field, had jitters of 0 that the readings' width had hidden, and lags that the surge of
    power at a start of load had falsified: such a row is not believed.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[2]
    gpu_uuid: str
    gpu_name: str
    driver: str
    tested_at: AwareDatetime
    ticks: int
    period_s: float | None
    jitter_idle: Jitter | None
    jitter_load: Jitter | None = None
    reading_width_s: float | None
    call_wall_s: float
    call_wall_p99_s: float
    call_processor_s: float
    lag: Lag
    plateau_ratio: float | None = None

    @property
    def jitter_s(self) -> float | None:
        """The jitter or upper limit that windows may count on: the larger one, and none if load was never seen."""
        known = [j.jitter_s for j in (self.jitter_idle, self.jitter_load) if j is not None]
        return max(known) if self.jitter_load is not None else None


OLDER_FORMAT = "the self-test is of an older format; run `llem config --self-test` again"

_Rows = TypeAdapter(dict[str, Any])


def path() -> Path:
    """The file that holds them."""
    # Inside, since energy sources use this module, and the configuration asks the sources when it is imported.
    from llenergymeasure.user_config import cache_dir, load_user_config

    try:
        folder = cache_dir(load_user_config())
    except ConfigError:  # a broken user file is told elsewhere; findings need no setting
        folder = cache_dir()
    return folder / "sensors.json"


def known(uuids: Iterable[str]) -> dict[str, SelfTest | str]:
    """Findings about these GPUs under the driver that runs now, or why what is kept of one cannot be used."""
    rows, driver = cache_file.read(path(), _Rows), driver_version()
    found = {u: _believed(rows.get(_key(u, driver))) for u in uuids}
    return {u: test for u, test in found.items() if test is not None}


def _believed(row: Any) -> SelfTest | str | None:
    """A row as findings; the reason if it is of the first format; None if there is none or it is broken."""
    try:
        return SelfTest.model_validate(row)
    except ValidationError:
        return OLDER_FORMAT if isinstance(row, dict) and row.get("format", 1) == 1 else None


def keep(tests: Iterable[SelfTest]) -> Path:
    """Add findings to the file, give its path; raises OSError where it cannot be written.

    Other rows stay as they are, those of other formats, too: another version may know them.
    """
    target = path()
    rows = cache_file.read(target, _Rows)
    cache_file.write(target, _Rows, rows | {_key(t.gpu_uuid, t.driver): t.model_dump(mode="json") for t in tests})
    return target


def _key(uuid: str, driver: str | None) -> str:
    return f"{uuid}/{driver}"
