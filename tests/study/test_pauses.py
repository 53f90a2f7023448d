"""Pauses between runs: unset is not zero, zero is not unset, and what is planned is kept."""

import signal
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from cli.process import NEVER_ENDING, llem, start, write
from llenergymeasure import study as studies
from llenergymeasure.core.plan import make_plan
from llenergymeasure.user_config import ExecutionSection, UserConfig
from study.running import Impatient, Watcher, execute, make, manifest
from study.stand_in import Child

USER = UserConfig(execution=ExecutionSection(config_gap_seconds=7, cycle_gap_seconds=11))
SENSOR, PRETENDED, NONE = (
    {"energy": {"backend": "codecarbon"}},
    {"energy": {"backend": "simulated"}},
    {"energy": {"backend": "none"}},
)
TWO_BY_TWO = {"sweep": {"n": [2, 3]}}


def gaps(*layers: dict[str, object], **execution: object) -> list[float]:
    """Pauses before the four runs of a study of two configurations in two cycles."""
    wanted = {"n_cycles": 2, "cycle_order": "interleaved", **execution}
    study = make(TWO_BY_TWO, *layers, {"execution": wanted})
    return studies.planned_gaps_s(study, make_plan(study).runs, USER)


@pytest.mark.parametrize(
    ("energy", "execution", "expected"),
    [
        pytest.param(SENSOR, {}, [0, 7, 11, 7], id="unset: the user's, with a sensor"),
        pytest.param(SENSOR, {"config_gap_seconds": 0}, [0, 0, 11, 0], id="config gap 0 is 0"),
        pytest.param(SENSOR, {"cycle_gap_seconds": 0}, [0, 7, 0, 7], id="cycle gap 0 is 0"),
        pytest.param(SENSOR, {"config_gap_seconds": 0, "cycle_gap_seconds": 0}, [0, 0, 0, 0], id="both 0"),
        pytest.param(SENSOR, {"config_gap_seconds": 2.5}, [0, 2.5, 11, 2.5], id="a written gap wins"),
        pytest.param(NONE, {}, [0, 0, 0, 0], id="unset: none without a sensor"),
        pytest.param(PRETENDED, {}, [0, 0, 0, 0], id="unset: none with a pretended sensor"),
        pytest.param(
            NONE, {"config_gap_seconds": 3, "cycle_gap_seconds": 5}, [0, 3, 5, 3], id="written: also without a sensor"
        ),
        pytest.param(SENSOR, {"cycle_order": "sequential"}, [0, 7, 7, 7], id="sequential knows config gaps only"),
    ],
)
def test_gap_before_each_run(energy: dict[str, object], execution: dict[str, object], expected: list[float]) -> None:
    """None before the first run; a cycle gap replaces the config gap between passes; unset takes the user's."""
    pytest.importorskip("codecarbon")

    assert gaps(energy, **execution) == expected


def test_gaps_are_kept_on_the_clock(tmp_path: Path) -> None:
    """Between a window and the start of the next run at least its gap passes; what is left of it is told."""
    study = make(
        TWO_BY_TWO,
        {
            "execution": {
                "n_cycles": 2,
                "cycle_order": "interleaved",
                "config_gap_seconds": 0.6,
                "cycle_gap_seconds": 1.2,
            }
        },
    )
    watcher = Watcher(tmp_path / "out")

    done = execute(study, tmp_path / "out", watcher)

    rows = manifest(done.folder).rows
    ended = [r.start_time + timedelta(seconds=r.phases["window"].end_s) for r in done.rebuilt.results]
    waited = [(b.started_at - end).total_seconds() for b, end in zip(rows[1:], ended[:-1], strict=True)]  # type: ignore[operator]
    assert [w >= gap for w, gap in zip(waited, [0.6, 1.2, 0.6], strict=True)] == [True] * 3, waited
    told = [e[1] for e in watcher.heard if e[0] == "pause"]  # none where the end of a run took longer than its pause
    assert all(0 < t <= 1.2 for t in told), told


def test_no_gaps_leaves_them_out(tmp_path: Path) -> None:
    """`gaps=False` (--no-gaps) runs a study with hour-long pauses straight through."""
    study = make(TWO_BY_TWO, {"execution": {"config_gap_seconds": 3600}})
    watcher = Watcher(tmp_path / "out")
    (tmp_path / "out").mkdir()

    done = studies.execute(study, UserConfig(), parent=tmp_path / "out", observer=watcher, gaps=False)

    assert [e for e in watcher.heard if e[0] == "pause"] == []
    assert manifest(done.folder).counts()["completed"] == 2


def test_gaps_are_announced_with_the_way_out(tmp_path: Path) -> None:
    """Before a study with pauses their total is said, and that --no-gaps leaves them out; then it does."""
    body = {"sweep": {"n": [2, 3]}, "execution": {"n_cycles": 1, "config_gap_seconds": 600}}
    file = write(tmp_path, body)

    without = llem("run", file, "--no-gaps", cwd=tmp_path, timeout_s=60)

    assert "pause" not in without.err
    assert "2 of 2 runs completed" in without.out
    # the announcement itself, from a study that is stopped before its pause
    with start("run", write(tmp_path, body, NEVER_ENDING), cwd=tmp_path) as child:
        assert child.stderr is not None
        said = [child.stderr.readline() for _ in range(3)]  # what each run takes, all of them, the pauses
        assert said[1] == "note: expected duration: at least 10 min plus loading, of which pauses 10 min\n"
        assert said[2] == "note: pauses add 10 min; --no-gaps leaves them out\n"
        child.send_signal(signal.SIGINT)
        child.wait(timeout=20)


@pytest.mark.parametrize("paced", [True, False], ids=["with gaps", "--no-gaps"])
@pytest.mark.parametrize("order", ["sequential", "interleaved", "shuffled", "latin_square"])
def test_order_and_gaps_on_the_clock_are_those_of_the_plan(tmp_path: Path, order: str, paced: bool) -> None:
    """Starts read from the manifest are in the plan's order, each at least its gap after the window before it."""
    execution = {"n_cycles": 2, "cycle_order": order, "config_gap_seconds": 0.4, "cycle_gap_seconds": 0.9}
    study, watcher = make(TWO_BY_TWO, {"execution": execution}), Watcher(tmp_path / "out")
    (tmp_path / "out").mkdir()

    done = studies.execute(study, UserConfig(), parent=tmp_path / "out", observer=watcher, gaps=paced)

    plan = make_plan(study)
    rows = {r.index: r for r in manifest(done.folder).rows}
    assert sorted(rows, key=lambda i: rows[i].started_at) == [r.index for r in plan.runs]  # type: ignore[arg-type, return-value]
    ended = {i: r.start_time + timedelta(seconds=r.phases["window"].end_s) for i, r in done.rebuilt.by_index().items()}
    planned = studies.planned_gaps_s(study, plan.runs, UserConfig())[1:]
    waited = [(rows[b.index].started_at - ended[a.index]).total_seconds() for a, b in pairwise(plan.runs)]  # type: ignore[operator]
    if paced:
        assert [w >= gap for w, gap in zip(waited, planned, strict=True)] == [True] * 3, (waited, planned)
    else:
        assert [e for e in watcher.heard if e[0] == "pause"] == []


@pytest.mark.parametrize(
    ("dies_in", "pauses"),
    [
        pytest.param(["download"] * 3, [], id="nothing was loaded: no pause at all"),
        pytest.param(["load", "download", "download"], [600], id="only after the one that loaded"),
        pytest.param(["download", "load", "download"], [600], id="whatever failed before it"),
        pytest.param(["window", "load", "baseline"], [600, 600], id="after each that loaded"),
    ],
)
def test_a_failure_before_load_costs_no_pause(
    tmp_path: Path, child: Child, monkeypatch: pytest.MonkeyPatch, dies_in: list[str], pauses: list[float]
) -> None:
    """A pause lets the GPU cool; a run whose model was never loaded, because the hub is away, has heated nothing."""
    monkeypatch.setattr("llenergymeasure.study_runner.Terminal", Impatient)
    phases = ("download", "baseline", "load", "window")
    child.does(
        f"last = {dies_in!r}[int(os.environ['LLEM_INDEX'])]\n"
        f"for name in {phases!r}[: {phases!r}.index(last) + 1]: phase(name)\n"
        "sys.exit(1)"
    )
    execution = {"cycle_order": "sequential", "config_gap_seconds": 600}
    watcher = Watcher(tmp_path / "out")

    execute(make({"sweep": {"n": [2, 3, 4]}, "execution": execution}), tmp_path / "out", watcher)

    assert [what for kind, what in watcher.heard if kind == "pause"] == pauses
