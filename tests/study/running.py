"""Studies of the pretended engine for tests: made small, run for real, watched while they run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli.process import FAST, over
from llenergymeasure import ExperimentResult, StudyConfig
from llenergymeasure import study as studies
from llenergymeasure.core.manifest import StudyManifest
from llenergymeasure.core.plan import Run
from llenergymeasure.core.sweep import expand
from llenergymeasure.study import Executed
from llenergymeasure.study_runner import Observer
from llenergymeasure.user_config import UserConfig


def make(*layers: dict[str, Any]) -> StudyConfig:
    """A study of FAST with `layers` on top, expanded."""
    return expand(over(FAST, {"execution": {"n_cycles": 1}}, *layers))


class Watcher(Observer):
    """Notes what a study says, with the manifest that was on disk at that moment; may act at the start of a run."""

    def __init__(self, parent: Path, at_start: Callable[[Run, Path], None] | None = None) -> None:
        self._parent, self._at_start = parent, at_start
        self.heard: list[tuple[str, Any]] = []
        self.on_disk: list[StudyManifest] = []

    @property
    def folder(self) -> Path:
        """The folder of the study that is running."""
        (folder,) = self._parent.iterdir()
        return folder

    def run_started(self, run: Run, summary: str, total: int) -> None:
        """A run begins."""
        self.on_disk.append(manifest(self.folder))
        self.heard.append(("start", run.index))
        if self._at_start is not None:
            self._at_start(run, self.folder)

    def run_finished(self, run: Run, summary: str, result: ExperimentResult | None, error: str | None) -> None:
        """A run has ended."""
        self.heard.append(("end", run.index))

    def waiting(self, seconds: float) -> None:
        """A gap begins."""
        self.heard.append(("pause", seconds))


class Impatient:
    """A clock whose waits pass at once; `enter_at_s` cuts one short."""

    def __init__(self, enter_at_s: float | None = None) -> None:
        self.at_s, self._enter_at_s = 100.0, enter_at_s

    def now_s(self) -> float:
        """Its time."""
        return self.at_s

    def wait(self, seconds: float) -> bool:
        """Jump ahead."""
        self.at_s += seconds
        return self._enter_at_s is not None and self.at_s >= self._enter_at_s


def execute(
    study: StudyConfig, parent: Path, watcher: Watcher | None = None, *, user: UserConfig | None = None
) -> Executed:
    """Run a study below `parent`."""
    parent.mkdir(exist_ok=True)
    return studies.execute(study, user or UserConfig(), parent=parent, observer=watcher)


def manifest(folder: Path) -> StudyManifest:
    """The manifest on disk."""
    return StudyManifest.model_validate_json((folder / "study_manifest.json").read_bytes())


def statuses(folder: Path) -> list[str]:
    """Status of each run by index, as on disk."""
    return [r.status for r in manifest(folder).rows]


def load(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_bytes())
