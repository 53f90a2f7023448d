"""`llem run --calibration`: checked before anything is measured, told to every process of the command."""

import json
import os
from pathlib import Path

import pytest

from cli.process import FAST, llem
from llenergymeasure.calibration_file import VARIABLE, named_calibration, use_calibration
from llenergymeasure.core.errors import ConfigError

GOOD = {"GPU-a": {"gain": 1.02, "offset_w": 0.5, "a": 0.01}}


def written(folder: Path, text: str, name: str = "cal.json") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_named_file_reaches_the_processes_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its whole path, since they may have another folder; none is named by default."""
    monkeypatch.delenv(VARIABLE, raising=False)
    assert named_calibration(os.environ) == {}
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.chdir(tmp_path)
    written(tmp_path, json.dumps(GOOD))
    use_calibration(Path("cal.json"), on_cluster=False)
    assert os.environ[VARIABLE] == str(tmp_path / "cal.json")
    assert named_calibration(os.environ)["GPU-a"].gain == 1.02


def test_on_a_cluster_it_is_refused(tmp_path: Path) -> None:
    """Nothing there would read it."""
    with pytest.raises(ConfigError, match="on this machine"):
        use_calibration(written(tmp_path, json.dumps(GOOD)), on_cluster=True)


BAD = [
    pytest.param('{"GPU-a": {"gain": 1.0}}', "GPU-a.a", id="a key is missing"),
    pytest.param("gain: 1", "Invalid JSON", id="YAML"),
    pytest.param(None, "cannot be read", id="no file"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_a_bad_file_stops_the_command_before_it_measures(text: str | None, said: str, tmp_path: Path) -> None:
    """Exit code 2, one message with the file and the key, no results folder."""
    written(tmp_path, json.dumps(FAST), "c.yaml")
    if text is not None:
        written(tmp_path, text)
    ended = llem("run", "c.yaml", "-o", "out", "--calibration", "cal.json", cwd=tmp_path)
    assert ended.code == 2
    (error,) = ended.errors
    assert "cal.json" in error
    assert said in error
    assert not (tmp_path / "out").exists()
