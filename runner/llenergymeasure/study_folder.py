"""The folder of one study on this machine: what was to be run, what happened to each run, the files of each result."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from llenergymeasure import store
from llenergymeasure.core.config import StudyConfig
from llenergymeasure.core.errors import ResultStoreError, StudyError
from llenergymeasure.core.manifest import SCHEMA_VERSION, StudyManifest
from llenergymeasure.core.plan import Run
from llenergymeasure.core.result import ExperimentResult, StudyResult
from llenergymeasure.measure import Measured

M = TypeVar("M", bound=BaseModel)
_STAMP = re.compile(r"_(?P<time>\d{8}T\d{6}Z)(?:_(?P<number>\d+))?$")


@dataclass(frozen=True)
class StudyFolder:
    """A study's folder; every file in it is written whole or not at all."""

    path: Path

    @classmethod
    def create(cls, parent: Path, study: StudyConfig) -> "StudyFolder":
        """Make a new folder below `parent` with study.json in it; raises ResultStoreError."""
        folder = cls(store.new_folder(parent, study.name))
        folder.write_study(study)
        return folder

    def write_study(self, study: StudyConfig) -> None:
        """Write what is to be run; raises ResultStoreError."""
        self._write(store.STUDY, study.model_dump_json(indent=2, exclude_none=True))

    def write_manifest(self, manifest: StudyManifest) -> None:
        """Write what happened so far; raises ResultStoreError."""
        self._write(store.MANIFEST, manifest.model_dump_json(indent=2))

    def write_result(self, result: StudyResult) -> None:
        """Write what came of the study; raises ResultStoreError."""
        self._write(store.STUDY_RESULT, result.to_json())

    def _write(self, name: str, text: str) -> None:
        store.write_atomically(self.path / name, (text + "\n").encode())

    def read_study(self) -> StudyConfig:
        """What is to be run; raises StudyError."""
        return self._read(store.STUDY, StudyConfig)

    def read_manifest(self) -> StudyManifest:
        """What happened so far; raises StudyError."""
        manifest = self._read(store.MANIFEST, StudyManifest)
        if manifest.schema_version != SCHEMA_VERSION:
            raise StudyError(
                f"{self.path / store.MANIFEST}: has schema version {manifest.schema_version}, this version of llem "
                f"writes {SCHEMA_VERSION}; go on with the version that wrote it ({manifest.tool_version})"
            )
        return manifest

    def _read(self, name: str, kind: type[M]) -> M:
        path = self.path / name
        try:
            return kind.model_validate_json(path.read_bytes())
        except OSError as err:
            raise StudyError(f"{path}: cannot be read: {err.strerror}; name the folder of a study of llem run") from err
        except ValidationError as err:
            first = err.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise StudyError(
                f"{path}: is damaged, edited or of another version: {where}: {first['msg']}; "
                "restore it from a copy, or run the study anew"
            ) from err

    def save_run(self, run: Run, study: StudyConfig, measured: Measured) -> str:
        """Write a run's files; give the path of its result.json below the folder.

        Raises:
            ResultStoreError: They cannot be written, or the folder has vanished: it is not made again, since it
                would look like a study that has lost its earlier runs.

        """
        if not self.path.is_dir():
            raise ResultStoreError(f"{self.path}: the study's folder has vanished")
        relative = self._result_of(run, study)
        store.save_run((self.path / relative).parent, store.files_of(measured.result, measured.series, measured.raw))
        return relative

    def stored(self, run: Run, study: StudyConfig) -> tuple[str, ExperimentResult] | None:
        """Path and content of a run's result if it is there, whole, and of that configuration."""
        relative = self._result_of(run, study)
        try:
            result = ExperimentResult.from_json(self.path / relative)
        except (OSError, ValidationError):
            return None
        return (relative, result) if result.measurement_config_hash == run.config_hash else None

    def _result_of(self, run: Run, study: StudyConfig) -> str:
        name = store.run_folder_name(run.index, run.cycle, study.experiments[run.position], run.config_hash)
        return f"runs/{name}/{store.RESULT}"

    def remove_leftovers(self) -> None:
        """Take away the temporary files of a writer that was killed."""
        for name in (store.STUDY, store.MANIFEST, store.STUDY_RESULT, store.REPORT):
            _unlink(self.path.glob(f".{name}.*"))
        _unlink(self.path.glob("runs/*/.*.json.*"))
        _unlink(self.path.glob("runs/*/.*.parquet.*"))


def _unlink(found: Iterable[Path]) -> None:
    for path in found:
        path.unlink(missing_ok=True)


def latest(parent: Path) -> Path:
    """The newest study below `parent` by the time in its name; raises StudyError if there is none."""
    found = [m.parent for m in parent.glob(f"*/{store.MANIFEST}")]
    if not found:
        raise StudyError(f"{parent}: holds no study to resume; name its folder: --resume PATH")
    return max(found, key=_age)


def _age(folder: Path) -> tuple[str, int, float]:
    match = _STAMP.search(folder.name)
    stamp, number = (match["time"], int(match["number"] or 0)) if match else ("", 0)
    return stamp, number, folder.stat().st_mtime
