"""Exit codes of every command but `llem experiment`: 0, 1, 2 and 130, and what is left when a run is stopped.

Ones that take seconds of measuring are in study/test_exit_codes_of_real_windows.py.
"""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Finished
from cli.process import NEVER_ENDING, alive, llem, processes_with, start, tree, wait_until, write
from llenergymeasure.core.manifest import StudyManifest


def test_ok_is_0_also_with_an_invalid_verdict(single: Finished) -> None:
    """The tool did its work; that the number may not be believed is said in the summary."""
    assert single.ended.code == 0
    assert "invalid" in single.ended.out


def test_ok_is_0_also_without_energy(tmp_path: Path) -> None:
    """Unmeasured energy is no failure: the speed is a result."""
    ended = llem("run", write(tmp_path, {"energy": {"backend": "none"}}), cwd=tmp_path)

    assert ended.code == 0
    assert "unmeasured" in ended.out


@pytest.mark.parametrize("backend", ["simulated", "none"], ids=["invalid", "unmeasured"])
def test_strict_turns_a_verdict_that_is_not_valid_into_1(tmp_path: Path, backend: str) -> None:
    """--strict is for scripts that want only numbers to believe in; the result is stored all the same."""
    ended = llem("run", write(tmp_path, {"energy": {"backend": backend}}), "--strict", "-o", "out", cwd=tmp_path)

    assert ended.code == 1
    assert len(list((tmp_path / "out").glob("*/result.json"))) == 1


def test_any_failed_run_is_1(study: Finished) -> None:
    """A study in which some runs failed ends with 1, after all of them were tried."""
    assert study.ended.code == 1
    manifest = StudyManifest.model_validate_json((study.folder / "study_manifest.json").read_text())
    assert sorted(r.status for r in manifest.rows) == ["completed", "completed", "failed", "failed"]
    assert manifest.status == "failed"


def test_crashed_engine_is_1_and_leaves_no_folder(tmp_path: Path) -> None:
    """A single experiment whose engine crashes has no result: exit 1, one sentence, no folder that looks like one."""
    ended = llem("run", write(tmp_path, {"synthetic": {"fail_after_batches": 1}}), "-o", "out", cwd=tmp_path)

    assert ended.code == 1
    assert len(ended.errors) == 1
    assert not (tmp_path / "out").exists()


def test_csv_that_cannot_be_written_is_2_before_anything_is_measured(tmp_path: Path) -> None:
    """A path whose folder is missing is told at once."""
    ended = llem("run", write(tmp_path), "--export-csv", "nowhere/table.csv", cwd=tmp_path)

    assert ended.code == 2
    assert len(ended.errors) == 1
    assert "nowhere/table.csv" in ended.err
    assert not (tmp_path / "results").exists()


def test_csv_that_cannot_be_written_in_the_end_is_1_and_the_results_stay(tmp_path: Path) -> None:
    """The path has become a folder meanwhile: an error of its own; what was measured is safe already."""
    ended = llem("run", write(tmp_path), "--export-csv", "results", cwd=tmp_path)

    assert ended.code == 1
    assert len(ended.errors) == 1
    assert len(list((tmp_path / "results").glob("*/result.json"))) == 1


def test_no_arguments_show_help_and_are_2(tmp_path: Path) -> None:
    """`llem` alone is a usage error that shows the way."""
    ended = llem(cwd=tmp_path)

    assert ended.code == 2
    assert "Commands:" in ended.out + ended.err


def manifest_of(parent: Path) -> dict[str, Any] | None:
    """The manifest of the study that runs below `parent`, once it is there."""
    for path in parent.glob("*/study_manifest.json"):
        return dict(json.loads(path.read_text()))
    return None


def stopped(child: subprocess.Popen[str], *signals: int, pause_s: float = 0.3) -> tuple[int, str]:
    """Send the signals to the parent alone, give its exit code and stderr."""
    for i, number in enumerate(signals):
        if i:
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(timeout=pause_s)
        os.kill(child.pid, number)
    _, err = child.communicate(timeout=30)
    return child.returncode, err


def test_interrupted_study_is_130_with_a_manifest_and_no_child_alive(tmp_path: Path) -> None:
    """SIGINT stops the child, records the run as interrupted and the rest as pending, and says how far it came."""
    name = f"stop-{os.getpid()}-{tmp_path.name}"
    body = {"name": name, "experiments": [{}, NEVER_ENDING], "execution": {"n_cycles": 1, "cycle_order": "sequential"}}
    child = start("run", write(tmp_path, body), cwd=tmp_path)
    (second,) = wait_until(lambda: second_run(tmp_path / "results") and processes_with("LLEM_STUDY", name))

    code, err = stopped(child, signal.SIGINT)

    assert code == 130
    manifest = manifest_of(tmp_path / "results")
    assert manifest is not None
    assert manifest["status"] == "interrupted"
    assert [r["status"] for r in manifest["rows"]] == ["completed", "interrupted"]
    assert not alive(second)
    assert processes_with("LLEM_STUDY", name) == []
    assert "interrupted: 1 of 2 runs done" in err
    assert "Traceback" not in err


def second_run(parent: Path) -> bool:
    """Whether the first run is done and the second one runs."""
    manifest = manifest_of(parent)
    return manifest is not None and [r["status"] for r in manifest["rows"]] == ["completed", "running"]


def test_second_interrupt_kills_at_once(tmp_path: Path) -> None:
    """A child that does not hear SIGTERM gets 2 s; a second SIGINT does not wait for them and leaves no child."""
    name = f"twice-{os.getpid()}-{tmp_path.name}"
    body = {"name": name, "sweep": {"n": [2]}, "execution": {"n_cycles": 1}}
    child = start("run", write(tmp_path, body, NEVER_ENDING), "-v", cwd=tmp_path)
    assert child.stderr is not None
    wait_until(lambda: "warmup" in child.stderr.readline())  # by then it has its own handler of SIGTERM
    deaf = min(processes_with("LLEM_STUDY", name))  # the run itself; what it started has a later number
    os.kill(deaf, signal.SIGSTOP)  # a stopped process hears nothing but SIGKILL

    try:
        code, _ = stopped(child, signal.SIGINT, signal.SIGINT)

        assert code == 130
        assert not alive(deaf)
    finally:
        if alive(deaf):
            os.kill(deaf, signal.SIGKILL)


def test_interrupted_experiment_is_130_and_leaves_nothing(tmp_path: Path) -> None:
    """SIGINT in a single experiment ends it without a result folder."""
    child = start("run", write(tmp_path, NEVER_ENDING), "-v", cwd=tmp_path)
    assert child.stderr is not None
    wait_until(lambda: "warmup" in child.stderr.readline())

    code, err = stopped(child, signal.SIGINT)

    assert code == 130
    assert err.splitlines()[-1] == "interrupted"
    assert tree(tmp_path) == {"config.yaml"}


def test_study_interrupted_in_a_pause_is_130(tmp_path: Path) -> None:
    """A gap can be interrupted like a run: what is done stays completed, the next run was never started."""
    body = {"sweep": {"n": [2, 3]}, "execution": {"n_cycles": 1, "config_gap_seconds": 600}}
    child = start("run", write(tmp_path, body), cwd=tmp_path)
    assert child.stderr is not None
    wait_until(lambda: "pause of 10 min" in child.stderr.readline())

    code, err = stopped(child, signal.SIGINT)

    assert code == 130
    assert "1 of 2 runs done" in err
    manifest = manifest_of(tmp_path / "results")
    assert manifest is not None
    assert sorted(r["status"] for r in manifest["rows"]) == ["completed", "pending"]
    assert manifest["status"] == "interrupted"
