"""What is on disk when the process that runs a study is killed without a chance to say so."""

import os
import signal
from pathlib import Path

import pytest

from cli.process import NEVER_ENDING, alive, processes_with, start, wait_until, write
from llenergymeasure import ExperimentResult, StudyConfig
from study.running import manifest

ENDS = {
    "SIGKILL": (signal.SIGKILL, "running", -signal.SIGKILL),
    "SIGTERM": (signal.SIGTERM, "interrupted", 128 + signal.SIGTERM),
    "terminal closed": (signal.SIGHUP, "interrupted", 128 + signal.SIGHUP),
}


@pytest.mark.parametrize(("number", "status", "code"), ENDS.values(), ids=ENDS)
def test_killed_study_keeps_what_it_had(tmp_path: Path, number: int, status: str, code: int) -> None:
    """Files are whole, the finished run is completed with its result, the other's end is told if it could be told.

    The run's own process ends with the study's, whatever ended that.
    """
    name = f"killed-{os.getpid()}-{number}"
    body = {"name": name, "experiments": [{}, NEVER_ENDING], "execution": {"n_cycles": 1, "cycle_order": "sequential"}}
    child = start("run", write(tmp_path, body), cwd=tmp_path)

    def second_run() -> list[int]:
        folders = list((tmp_path / "results").glob("*/study_manifest.json"))
        at_it = folders and [r.status for r in manifest(folders[0].parent).rows] == ["completed", "running"]
        return processes_with("LLEM_STUDY", name) if at_it else []

    orphans = wait_until(second_run)
    try:
        os.kill(child.pid, number)
        _, said = child.communicate(timeout=20)

        assert child.returncode == code
        assert ("go on with: llem run --resume" in said) == (status == "interrupted")
        wait_until(lambda: not any(map(alive, orphans)))
        (folder,) = (tmp_path / "results").iterdir()
        first, second = manifest(folder).rows
        assert (first.status, second.status) == ("completed", status)
        assert first.result_uri is not None
        assert ExperimentResult.from_json(folder / first.result_uri).verdict.state == first.verdict
        assert len(StudyConfig.model_validate_json((folder / "study.json").read_bytes()).experiments) == 2
        assert list(folder.rglob(".*")) == []  # no temporary file of a write
    finally:
        for pid in filter(alive, orphans):
            os.kill(pid, signal.SIGKILL)
