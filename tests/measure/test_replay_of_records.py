"""The records of benchmarks that hang on replaying recordings, and what docs/measurement.md says of them."""

import gzip
import importlib
import json
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fakes.recorded_run import NAMES, TRACES
from llenergymeasure import ExperimentResult, replay
from llenergymeasure.core.energy_series import DEFAULT_JITTER_S

ROOT = Path(__file__).resolve().parents[2]
ALARMS: dict[str, Any] = json.loads((ROOT / "benchmarks/results/alarms.json").read_text(encoding="utf-8"))
H200 = [f"gpu_{name}_h200.json.gz" for name in ("planted", "spread", "equal")]
KINDS = ("own", "level", "earlier")
UNSETTLED = {
    "spread 00004_c2_llem-7b-pytorch_e778fbef",
    "planted 00001_c1_llem-7b-pytorch_426f88fc",
    "planted 00003_c2_llem-7b-pytorch_426f88fc",
}


@pytest.fixture
def alarms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/alarms.py, which is no package; it has `recorded` with it."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("alarms")


def recordings(alarms: ModuleType) -> list[Any]:
    """The runs that the traces are of."""
    recorded = alarms.recorded
    return [run for name in recorded.FILES for run in recorded.runs(recorded.RESULTS / name)]


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_is_what_the_record_gives(name: str, alarms: ModuleType) -> None:
    """The traces that the tests replay are those that benchmarks/recorded.py writes."""
    text = gzip.decompress((TRACES / f"{name}.json.gz").read_bytes()).decode()
    assert text == alarms.recorded.trace(*alarms.recorded.TRACES[name])


def test_no_self_test_of_the_first_format_is_believed(alarms: ModuleType) -> None:
    """Its jitter was 0 and its lag 2.0 ms in four of the runs; the edges are cut with the default in all."""
    found = [(r, s) for r in recordings(alarms) for s in r.result.sensors.values()]
    assert sum((s.jitter_used_s, s.jitter_source) == (0.0, "self-test") for _, s in found) == 4
    for run, _ in found:
        seen = replay.observed(run.result, run.raw)
        (facts,), (series,) = seen.energy.sensors.values(), seen.energy.series.values()
        assert (facts.jitter_used_s, series.jitter_s, facts.jitter_source) == (DEFAULT_JITTER_S,) * 2 + ("default",)
        assert facts.lag_s is None
        assert "self-test" in facts.lag_reason


def test_the_record_of_alarms_is_what_this_version_says(alarms: ModuleType) -> None:
    """Window by window; benchmarks/alarms.py writes it."""
    runs = recordings(alarms)
    for least_s in alarms.LENGTHS_S:
        found = [w for run in runs for w in alarms.windows(run, least_s)]
        told = ALARMS[f"windows_of_{least_s:g}_s"]
        now = alarms.summary(found)
        assert told["with_alarms"] == alarms.rows(found)
        assert told["recordings"] == now["recordings"]
        for kind in KINDS:  # the largest drift is a float of another machine
            assert told[kind] == {**now[kind], "largest_power_drift": told[kind]["largest_power_drift"]}


def test_a_settling_that_did_not_end_settled_is_an_alarm_of_the_measured_window(alarms: ModuleType) -> None:
    """The user of that window is warned; windows of the settling itself lie before that was known."""
    runs = recordings(alarms)
    found = [w for run in runs for w in alarms.windows(run, 10.0) if "not_settled" in w.alarms]
    assert {w.run for w in found} == UNSETTLED
    assert {w.kind for w in found} == {"own"}


def test_the_page_says_what_the_record_holds() -> None:
    """Windows and alarms of 10 s and of 5 s, by kind and in all."""
    section = (ROOT / "docs/measurement.md").read_text(encoding="utf-8").partition("## Judging a recording again")[2]
    page = re.sub(r"\s+", " ", section.partition("\n## ")[0])
    own, level, earlier = (ALARMS["windows_of_10_s"][kind] for kind in KINDS)
    windows, alarmed = counts(ALARMS["windows_of_10_s"])
    assert f"hold {windows} windows of at least 10 s" in page
    assert f"and {alarmed} of these have an alarm: " in page
    for kind, words in (
        (own, " measured windows"),
        (level, " that were cut from the level end"),
        (earlier, " from before"),
    ):
        assert f"{kind['windows_with_alarms']} of {kind['windows']}{words}" in page
    given = {c.rstrip("!") for k in (own, level, earlier) for c in k["alarms"]}
    assert given == {"power_drift", "not_settled"}
    assert f"Each alarm is `power_drift` ({sum(k['invalid'] for k in (own, level, earlier))} of them invalid)" in page
    assert f"{own['alarms']['not_settled']} of the measured windows" in page
    windows, alarmed = counts(ALARMS["windows_of_5_s"])
    assert f"Of {windows} windows of 5 s or more {alarmed} have an alarm" in page
    assert f"correlation of {ALARMS['pace']['correlation']:.2f}, at {ALARMS['pace']['power_per_pace']:.2f} %" in page


def counts(told: dict[str, Any]) -> tuple[int, int]:
    """Windows, and those with an alarm, of all kinds."""
    return sum(told[kind]["windows"] for kind in KINDS), sum(told[kind]["windows_with_alarms"] for kind in KINDS)


@pytest.mark.parametrize("name", H200)
def test_a_recording_of_today_gives_its_stored_result_again(name: str) -> None:
    """Thirty runs on H200s, with batches, processes and warnings recorded: joules to 1e-9, the rest as it was."""
    rows = json.loads(gzip.decompress((ROOT / "benchmarks/results" / name).read_bytes()))["runs"]
    assert rows
    for row in rows:
        stored = ExperimentResult.model_validate(row["result"])
        again = replay.judged_again(stored, row["recording"])
        assert again.energy_total_j == pytest.approx(stored.energy_total_j, rel=1e-9)
        assert again.loaded_idle_power_w == pytest.approx(stored.loaded_idle_power_w, rel=1e-9)
        assert again.uncertainty.edge == pytest.approx(stored.uncertainty.edge, rel=1e-4)
        assert again.conditions.power_drift == pytest.approx(stored.conditions.power_drift, abs=1e-6)
        assert again.cross_check.ratios == pytest.approx(stored.cross_check.ratios, rel=1e-6)
        assert again.verdict == stored.verdict
        assert again.measurement_warnings == stored.measurement_warnings


def test_the_page_says_what_the_records_of_the_h200_give(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scatter, equal work, planted difference and polled power, judged anew from the recorded ticks."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    files, told = [str(ROOT / "benchmarks/results" / name) for name in H200], {}
    for name in ("alarms", "judge", "pace", "polling"):
        monkeypatch.setattr("sys.argv", [f"benchmarks/{name}.py", os.devnull, *files])
        importlib.import_module(name).main()
        told[name] = json.loads(capsys.readouterr().out)
    judged, page = told["judge"], (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    planted = H200[0]
    equal, waited, halves = judged["equal_seeds"][planted], judged["waited_for"][planted], judged["equal_work"]
    assert f"{judged['spread']['degrees_of_freedom']} degrees of freedom" in page
    assert f"pooled **{100 * judged['spread']['pooled_cv']:.2f} %**" in page
    assert f"ratio {equal['ratio']:.3f} (95 %: {equal['low']:.3f} to {equal['high']:.3f}): holds 1" in page
    assert f"ratio {waited['ratio']:.3f} ({waited['low']:.3f} to {waited['high']:.3f})" in page
    assert f"idle power {waited['planted_ratio']:.3f}" in page
    assert equal["planted_ratio"] == 1.0
    assert f"holds 1 in {halves['interval_holds_1']} of {halves['pairs']} pairs" in page
    drift, slower = told["alarms"]["pace_of_own_windows"], told["pace"]["power_of_slower_batches_w"]
    assert f"correlation of {drift['correlation']:.2f}, at {drift['power_per_pace']:.2f} ± 0.03 % per" in page
    assert f"({slower['batches']} batches of {drift['windows']} runs)" in page
    assert f"{slower['value']:.0f} ± {slower['std_error']:.0f} W" in page
    average = told["polling"]["average"]
    assert (
        f"H200 | −{-100 * average['mean']:.1f} % | {100 * average['sd']:.1f} % | −{-100 * average['largest']:.1f} %"
        in page
    )


@pytest.mark.parametrize("name", ["alarms", "judge", "pace", "polling", "scatter"])
def test_a_benchmark_that_judges_records_needs_no_argument(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the documents name it: it takes the repository's recordings, prints the record and writes nothing."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr("sys.argv", [f"benchmarks/{name}.py"])
    importlib.import_module(name).main()

    printed = json.loads(capsys.readouterr().out)
    assert (
        printed["command"] == f"python benchmarks/{name}.py OUT.json gpu_spread_h100.json.gz gpu_planted_h100.json.gz"
    )
    kept = ROOT / f"benchmarks/results/{'alarms' if name == 'alarms' else f'{name}_h100'}.json"
    assert not kept.exists() or json.loads(kept.read_text(encoding="utf-8")).keys() == printed.keys()


def test_alarms_are_written_only_where_asked(
    alarms: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without a file the record is printed; with one it is also written."""
    for arguments in ([], [str(tmp_path / "out.json")]):
        monkeypatch.setattr("sys.argv", ["benchmarks/alarms.py", *arguments])
        wanted = alarms.recorded.asked(alarms.__doc__)
        alarms.recorded.give({"windows": 1}, wanted)
        assert [p.name for p in tmp_path.iterdir()] == [Path(a).name for a in arguments]
    assert (tmp_path / "out.json").read_text(encoding="utf-8") in capsys.readouterr().out
