"""A study that goes on where it ended: what counts, what is run again, and what is refused, with real processes."""

import hashlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.process import llem, over, processes_with, start, wait_until, write
from llenergymeasure import ExperimentResult, StudyConfig
from llenergymeasure import study as studies
from llenergymeasure.core.breaker import Breaker
from llenergymeasure.core.errors import StudyError
from llenergymeasure.core.manifest import StudyManifest
from llenergymeasure.pacing import pause
from llenergymeasure.study import Executed
from llenergymeasure.user_config import UserConfig
from study.running import Impatient, Watcher, execute, make, manifest, statuses

TWO = {"sweep": {"n": [2, 3]}, "execution": {"n_cycles": 2, "cycle_order": "interleaved"}}
CRASHING = {"synthetic": {"fail_after_batches": 1}}


@pytest.fixture
def done(tmp_path: Path) -> Executed:
    """A finished study of two configurations in two cycles."""
    return execute(make(TWO), tmp_path / "out")


def again(folder: Path, study: StudyConfig | None = None, n_cycles: int | None = None) -> tuple[Executed, list[int]]:
    """Resume; give what came of it and the indexes of the runs that were started."""
    watcher = Watcher(folder.parent)
    ended = studies.resume(folder, UserConfig(), study=study, n_cycles=n_cycles, observer=watcher)
    return ended, [what for kind, what in watcher.heard if kind == "start"]


def ids(folder: Path) -> dict[int, str]:
    """Each completed run's measurement, which has an id of its own."""
    rows = [r for r in manifest(folder).rows if r.result_uri]
    return {r.index: ExperimentResult.from_json(folder / str(r.result_uri)).experiment_id for r in rows}


def test_finished_study_runs_nothing_again(done: Executed) -> None:
    """All results are there: no run starts, every measurement is the same."""
    before = ids(done.folder)

    ended, started = again(done.folder)

    assert started == []
    assert ids(done.folder) == before
    assert ended.manifest.status == "completed"


def test_more_cycles_are_added(done: Executed) -> None:
    """Topping up runs only the new cycles; study.json and manifest say so, and the design is the same."""
    before = ids(done.folder)

    ended, started = again(done.folder, n_cycles=3)

    assert started == [4, 5]
    assert {i: ids(done.folder)[i] for i in before} == before
    assert ended.manifest.study_design_hash == done.manifest.study_design_hash
    assert [e.cycles_completed for e in ended.result.experiments] == [3, 3]
    assert StudyConfig.model_validate_json((done.folder / "study.json").read_bytes()).execution.n_cycles == 3


def test_fewer_cycles_are_refused(done: Executed) -> None:
    """What was measured cannot be taken away."""
    with pytest.raises(StudyError, match="has 2 cycles already"):
        again(done.folder, n_cycles=1)


@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: p.write_text("{")], ids=["deleted", "truncated"])
def test_completed_run_without_its_result_is_run_again(done: Executed, spoil: Callable[[Path], Any]) -> None:
    """Only completed runs whose result is there and whole count."""
    before = ids(done.folder)
    spoil(done.folder / str(manifest(done.folder).rows[1].result_uri))

    _, started = again(done.folder)

    assert started == [1]
    after = ids(done.folder)
    assert [i for i in before if after[i] != before[i]] == [1]


def test_failed_runs_are_run_again(tmp_path: Path) -> None:
    """A failure is not kept; its second attempt is counted."""
    first = execute(make({"experiments": [{}, CRASHING]}), tmp_path / "out")

    _, started = again(first.folder)

    assert started == [1]
    assert [r.attempts for r in manifest(first.folder).rows] == [1, 2]


def test_changed_design_is_explained_field_by_field(done: Executed) -> None:
    """The error names configuration, field, new and old value; nothing is changed."""
    before = (done.folder / "study_manifest.json").read_bytes()

    with pytest.raises(StudyError) as caught:
        again(done.folder, make({"sweep": {"n": [2, 5]}, "execution": TWO["execution"]}))

    assert "the design has changed" in str(caught.value)
    assert "synthetic n=3: n is 5, was 3" in str(caught.value)
    assert (done.folder / "study_manifest.json").read_bytes() == before


GAIN = '{"GPU-a": {"gain": %s, "a": 0.01}}'


@pytest.mark.parametrize(
    ("before", "today", "fix"),
    [
        (None, "1.02", "leave --calibration and LLEM_CALIBRATION out"),
        ("1.02", None, "name the file that it began with by --calibration"),
        ("1.02", "1.03", "name the file that it began with by --calibration"),
    ],
    ids=["added", "left out", "another"],
)
def test_another_calibration_is_refused(
    before: str | None, today: str | None, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joules of one study are on one scale: the error says what was, what is and what to do; nothing is changed."""

    def named(gain: str | None) -> str:
        path = tmp_path / f"{gain}.json"
        path.write_text(GAIN % gain, encoding="utf-8")
        monkeypatch.setenv("LLEM_CALIBRATION", "" if gain is None else str(path))
        return "none" if gain is None else f"a file with SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"

    was = named(before)
    folder = execute(make(), tmp_path / "out").folder
    again(folder)
    written = (folder / "study_manifest.json").read_bytes()
    now = named(today)

    with pytest.raises(StudyError) as caught:
        again(folder)

    for part in ("the calibration has changed since", now, f"was {was}", fix):
        assert part in str(caught.value)
    assert (folder / "study_manifest.json").read_bytes() == written


def _edited(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        body = json.loads(path.read_text())
        change(body)
        path.write_text(json.dumps(body))

    return apply


DAMAGED = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:400]), "damaged"),
    "empty": (lambda p: p.write_text(""), "damaged"),
    "gone": (lambda p: p.unlink(), "cannot be read"),
    "a row's configuration": (_edited(lambda b: b["rows"][1].update(config_hash="0" * 16)), "run 1: config_hash"),
    "a row's cycle": (_edited(lambda b: b["rows"][1].update(cycle=7)), "run 1: cycle 7, expected 1"),
    "a row is missing": (_edited(lambda b: b["rows"].pop()), "3 runs, but study.json has 4"),
    "of another study": (_edited(lambda b: b.update(study_design_hash="f" * 16)), "design hash"),
    "of another version": (_edited(lambda b: b.update(schema_version="9.9")), "schema version 9.9"),
    "an unknown status": (_edited(lambda b: b["rows"][0].update(status="done")), "rows.0.status"),
}


@pytest.mark.parametrize(("spoil", "words"), DAMAGED.values(), ids=DAMAGED)
def test_manifest_that_does_not_fit_is_refused(done: Executed, spoil: Callable[[Path], Any], words: str) -> None:
    """The error names the difference, and no result is touched."""
    before = {p: p.read_bytes() for p in done.folder.rglob("result.json")}
    spoil(done.folder / "study_manifest.json")

    with pytest.raises(StudyError, match=words):
        again(done.folder)

    assert {p: p.read_bytes() for p in done.folder.rglob("result.json")} == before


def test_two_processes_cannot_be_at_one_study(tmp_path: Path) -> None:
    """The second one is told who is at it."""
    name = f"both-{os.getpid()}"
    slow = {"name": name, "sweep": {"n": [2]}, "synthetic": {"batch_overhead_ms": 60_000}}
    child = start("run", write(tmp_path, slow), cwd=tmp_path)
    try:
        wait_until(lambda: processes_with("LLEM_STUDY", name))
        (folder,) = (tmp_path / "results").iterdir()
        ended = llem("run", "--resume", folder, cwd=tmp_path, timeout_s=60)
    finally:
        child.kill()
        child.communicate()

    assert ended.code == 1
    assert f"in use by pid {child.pid}" in ended.err


STEP = """
import os, signal, sys
from pathlib import Path
from llenergymeasure import store, study as studies
from llenergymeasure.core.config import StudyConfig
from llenergymeasure.user_config import UserConfig
wanted, after, target = int(sys.argv[1]), sys.argv[2] == "after", Path(sys.argv[3])
count, write = 0, store.write_atomically
def counted(path, content):
    global count
    if path.name == store.MANIFEST:
        count += 1
        if count == wanted and not after:
            os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)
    if path.name == store.MANIFEST and count == wanted and after:
        os.kill(os.getpid(), signal.SIGKILL)
store.write_atomically = counted
study = StudyConfig.model_validate_json((target / "wanted.json").read_bytes())
studies.execute(study, UserConfig(), parent=target / "out")
print("writes", count)
"""


@pytest.mark.slow
def test_parent_killed_at_every_write_of_the_manifest(tmp_path: Path) -> None:
    """SIGKILL before and after each write: what was completed stays, the rest is run, the end is the same."""
    import subprocess
    import sys

    study = make({"sweep": {"n": [2, 3]}, "execution": {"cycle_order": "interleaved"}})
    writes = 6  # new, running, completed, running, completed, finished
    for number in range(1, writes + 2):
        for when in ("before", "after"):
            target = tmp_path / f"{number}-{when}"
            target.mkdir()
            (target / "wanted.json").write_text(study.model_dump_json(exclude_none=True))
            ended = subprocess.run(
                [sys.executable, "-c", STEP, str(number), when, str(target)],
                capture_output=True,
                text=True,
                check=False,
            )
            if number > writes:
                assert ended.stdout == f"writes {writes}\n", ended.stderr
                continue
            assert ended.returncode == -signal.SIGKILL
            (folder,) = (target / "out").iterdir()
            if not (folder / "study_manifest.json").exists():
                continue  # killed before there was a study to resume
            before = ids(folder)
            again(folder)
            assert statuses(folder) == ["completed"] * 2
            assert {i: ids(folder)[i] for i in before} == before


@pytest.mark.slow
def test_twenty_random_deaths_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    """12 runs, the parent killed 20 times: 12 results, none measured again, a whole manifest at every moment."""
    draw, kills = random.Random(20261125), 0
    body = {
        "name": f"deaths-{os.getpid()}",
        "sweep": {"n": [2, 3, 4]},
        "synthetic": {"batch_overhead_ms": 150},
        "execution": {"n_cycles": 4},
    }
    path, over_at_last, torn, seen = write(tmp_path, body), threading.Event(), [], {}

    def watch() -> None:
        while not over_at_last.is_set():
            for file in (tmp_path / "results").glob("*/study_manifest.json"):
                try:
                    rows = StudyManifest.model_validate_json(file.read_bytes()).rows
                    assert [r.index for r in rows] == list(range(12))
                    seen.update({r.index: seen.get(r.index, set()) | {r.completed_at} for r in rows if r.verdict})
                except (ValueError, AssertionError) as err:
                    torn.append(err)
            time.sleep(0.005)

    reader = threading.Thread(target=watch)
    reader.start()
    try:
        child = start("run", path, "-q", cwd=tmp_path)
        wait_until(lambda: list((tmp_path / "results").glob("*/study_manifest.json")))
        (folder,) = (tmp_path / "results").iterdir()
        while kills < 20:
            time.sleep(draw.uniform(0.1, 1.2))
            child.kill()
            child.communicate()
            kills += 1
            child = start("run", "--resume", folder, "-q", cwd=tmp_path)
        out, err = child.communicate(timeout=240)
    finally:
        over_at_last.set()
        reader.join()

    assert child.returncode == 0, err
    assert torn == []
    assert "12 of 12 runs completed" in out
    assert len(ids(folder)) == len(list(folder.rglob("result.json"))) == 12
    assert {i: len(ends) for i, ends in seen.items()} == dict.fromkeys(range(12), 1)
    assert list(folder.rglob(".*")) == []


@pytest.mark.parametrize("words", [("--resume",), ("--resume", "latest"), ("--resume", "-q")], ids=" ".join)
def test_latest_study_is_resumed(tmp_path: Path, words: tuple[str, ...]) -> None:
    """`--resume` without a path takes the newest folder of the results."""
    llem("run", write(tmp_path, {"sweep": {"n": [2]}, "execution": {"n_cycles": 1}}), cwd=tmp_path)

    ended = llem("run", *words, cwd=tmp_path)

    assert (ended.code, ended.out.splitlines()[-3]) == (0, "1 of 1 run completed, 0 failed, 0 combinations skipped")


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    """No study below the results folder: an error that names the way out."""
    ended = llem("run", "--resume", cwd=tmp_path)

    assert ended.code == 1
    assert "holds no study to resume" in ended.err


def test_breaker_probes_once_and_stops() -> None:
    """At the limit a probe, after it the end; a success closes it; 0 never opens."""
    states, breaker = [], Breaker(2)
    for failed in (True, True, False, True, True, True):
        breaker = breaker.after(failed=failed)
        states.append(breaker.state)
    assert states == ["closed", "probe", "closed", "closed", "probe", "open"]
    assert Breaker(0, failures=99).state == "closed"


def test_study_whose_runs_all_fail_stops_after_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two failures, a pause of a minute, a third: status circuit_breaker, the rest cancelled, exit code 1."""
    clock = Impatient()
    monkeypatch.setattr("llenergymeasure.study_runner.Terminal", lambda: clock)
    body = over(CRASHING, {"sweep": {"n": [2, 3, 4, 5]}, "execution": {"max_consecutive_failures": 2}})
    watcher = Watcher(tmp_path / "out")

    ended = execute(make(body), tmp_path / "out", watcher)

    assert ended.manifest.status == "circuit_breaker"
    assert sorted(statuses(ended.folder)) == ["cancelled", "failed", "failed", "failed"]
    assert [what for kind, what in watcher.heard if kind == "pause"] == [60]
    assert 160 <= clock.at_s < 161


def test_pause_is_counted_down_and_cut_short() -> None:
    """Each second what is left is told; Enter goes on."""
    told: list[float] = []

    assert not pause(103.5, Impatient(), told.append)
    assert told == [3.5, 2.5, 1.5, 0.5]
    assert pause(200, Impatient(enter_at_s=102), told.append)


def test_steps_of_the_wall_clock_move_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock that goes back a day during the study changes neither pauses nor what counts."""
    from datetime import UTC, datetime, timedelta

    back = iter([timedelta(), *[timedelta(days=-1)] * 99])
    monkeypatch.setattr("llenergymeasure.study_runner.utc_now", lambda: datetime.now(UTC) + next(back))
    began_s = time.monotonic()

    ended = execute(make(TWO, {"execution": {"config_gap_seconds": 0.3}}), tmp_path / "out")

    assert statuses(ended.folder) == ["completed"] * 4
    assert time.monotonic() - began_s >= 2 * 0.3
