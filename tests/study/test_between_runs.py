"""How far runs scatter on a GPU: kept at the end of a study, taken by later runs, never from what is no measurement."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure.between_runs import FOLDER, STUDIES_KEPT, known_spread, remember_spread
from llenergymeasure.core.comparison import ENERGY, QuantityComparison
from llenergymeasure.core.result import ExperimentResult, StudyResult
from study.running import execute, make

A, B = "GPU-a", "GPU-b"
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def result(*gpus: str, hours: int = 0, **fields: Any) -> ExperimentResult:
    """A run that was counted on these GPUs."""
    ended = NOW + timedelta(hours=hours)
    base: dict[str, Any] = {
        "experiment_id": "e", "measurement_config_hash": "h", "model": "m", "backend": "pytorch",
        "measurement_methodology": "steady_state", "input_tokens": 1, "output_tokens": 1, "total_tokens": 2,
        "requests": 1, "verdict": {"state": "valid"}, "duration_s": 60.0, "tokens_per_second": 1.0,
        "total_tokens_per_second": 1.0, "requests_per_second": 1.0, "start_time": ended, "end_time": ended,
        "energy_kind": "counter", "energy_per_device_j": dict.fromkeys(gpus, 1.0), "energy_total_j": float(len(gpus)),
    }  # fmt: skip
    return ExperimentResult.model_validate({**base, **fields})


def study(cv: float | None, freedom: int | None, *, directory: str = "/results/s") -> StudyResult:
    """A study that found this spread."""
    found = QuantityComparison(quantity=ENERGY, pooled_cv=cv, degrees_of_freedom=freedom)
    return StudyResult(name="s", study_design_hash="d", directory=directory, comparisons=[found])


def test_studies_on_one_gpu_are_pooled(tmp_path: Path) -> None:
    """0.4 % with 8 and 0.2 % with 4 degrees of freedom: the mean square, weighted, with 12; in any order of GPUs."""
    remember_spread(tmp_path, study(0.004, 8), [result(A, B)])
    remember_spread(tmp_path, study(0.002, 4, directory="/results/t"), [result(B, A)])
    found = known_spread(tmp_path, [B, A])
    assert found is not None
    assert found.degrees_of_freedom == 12
    assert found.value == pytest.approx(math.sqrt((8 * 0.004**2 + 4 * 0.002**2) / 12))


def test_a_study_that_goes_on_counts_once(tmp_path: Path) -> None:
    """The same folder again, with more cycles, takes the place of what it said before."""
    remember_spread(tmp_path, study(0.004, 8), [result(A)])
    remember_spread(tmp_path, study(0.003, 16), [result(A)])
    found = known_spread(tmp_path, [A])
    assert found is not None
    assert (found.value, found.degrees_of_freedom) == (pytest.approx(0.003), 16)


def test_each_set_of_gpus_has_its_own(tmp_path: Path) -> None:
    """Two GPUs together are not either one of them."""
    remember_spread(tmp_path, study(0.004, 8), [result(A)])
    assert known_spread(tmp_path, [B]) is None
    assert known_spread(tmp_path, [A, B]) is None
    assert known_spread(tmp_path, [A]) is not None


NOTHING = [
    pytest.param(study(None, None), [result(A)], id="no spread"),
    pytest.param(study(0.004, 0), [result(A)], id="no degrees of freedom"),
    pytest.param(study(0.004, 8), [], id="no run"),
    pytest.param(study(0.004, 8), [result(A), result(B)], id="runs on two GPUs by turns"),
    pytest.param(study(0.004, 8), [result(A, synthetic=True)], id="pretended"),
    pytest.param(study(0.004, 8), [result(A, energy_kind="estimate")], id="estimated"),
]


@pytest.mark.parametrize(("found", "results"), NOTHING)
def test_what_says_nothing_of_a_gpu_is_not_kept(
    found: StudyResult, results: Sequence[ExperimentResult], tmp_path: Path
) -> None:
    """No file is written."""
    remember_spread(tmp_path, found, results)
    assert not (tmp_path / FOLDER).exists()


def test_old_studies_are_forgotten(tmp_path: Path) -> None:
    """The newest ones are kept."""
    for i in range(STUDIES_KEPT + 3):
        remember_spread(tmp_path, study(0.004, 1, directory=f"/results/{i}"), [result(A, hours=i)])
    found = known_spread(tmp_path, [A])
    assert found is not None
    assert found.degrees_of_freedom == STUDIES_KEPT


def test_a_broken_file_is_as_good_as_none(tmp_path: Path) -> None:
    """It is not believed, and written anew."""
    remember_spread(tmp_path, study(0.004, 8), [result(A)])
    (path,) = (tmp_path / FOLDER).iterdir()
    path.write_text('{"x": 1', encoding="utf-8")
    assert known_spread(tmp_path, [A]) is None
    remember_spread(tmp_path, study(0.004, 8), [result(A)])
    assert known_spread(tmp_path, [A]) is not None


def test_a_cache_that_cannot_be_written_harms_no_study(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file stands where the folder should be: logged, not raised."""
    (tmp_path / FOLDER).write_text("", encoding="utf-8")
    remember_spread(tmp_path, study(0.004, 8), [result(A)])
    assert "cannot be kept" in caplog.text


def test_a_study_tells_its_spread_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every study that ends is asked, with its results."""
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr("llenergymeasure.study.remember_spread", lambda _c, s, r: asked.append((s.name, len(list(r)))))
    execute(make({"execution": {"n_cycles": 2}}), tmp_path / "results")
    assert [n for _, n in asked] == [2]
