"""Where output goes: the summary to stdout, progress to stderr, JSON alone with --json, plain text off a terminal."""

import csv
import json
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.conftest import Finished
from cli.process import FAST, LLEM, environment, llem, tree, write
from llenergymeasure import ExperimentResult, StudyResult

ANSI = "\x1b["


def test_version_prints_the_version_and_nothing_else(tmp_path: Path) -> None:
    """--version is one word for scripts."""
    ended = llem("--version", cwd=tmp_path)

    assert (ended.code, ended.out, ended.err) == (0, "2.0.0\n", "")


def test_kubectl_plugin_is_the_same_command(tmp_path: Path) -> None:
    """`kubectl llem` finds `kubectl-llem`, which is llem."""
    plugin = LLEM.with_name("kubectl-llem")

    said = subprocess.run([str(plugin), "--version"], capture_output=True, text=True, check=True, cwd=tmp_path)

    assert said.stdout == "2.0.0\n"


def test_help_lists_the_commands_and_every_flag_of_run(tmp_path: Path) -> None:
    """`llem --help` and `llem run --help` name what there is; both on stdout, exit 0."""
    top, run = llem("--help", cwd=tmp_path), llem("run", "--help", cwd=tmp_path)

    assert (top.code, run.code) == (0, 0)
    assert {"run", "plan", "config", "schema", "experiment"} <= set(re.findall(r"^  (\w+) ", top.out, re.MULTILINE))
    flags = set(re.findall(r"--[a-z-]+", run.out))
    assert {
        "--model", "--revision", "--backend", "--dataset", "--batch-size", "--precision", "--output", "--dry-run",
        "--quiet", "--verbose", "--cycles", "--order", "--no-gaps", "--export-csv", "--runner", "--strict", "--json",
        "--set",
    } <= flags  # fmt: skip


def test_summary_goes_to_stdout_and_progress_to_stderr(single: Finished, study: Finished) -> None:
    """Redirecting stdout keeps the numbers; what is only of interest while it runs is on stderr."""
    assert re.search(r"^output tokens/s +[\d.]+$", single.ended.out, re.MULTILINE)
    assert "verdict" in single.ended.out
    assert "tokens/s  rel. speed" in study.ended.out
    assert "2 of 4 runs completed, 2 failed, 1 combination skipped" in study.ended.out
    assert single.ended.err == "note: energy by simulated on 1 GPU; a window of one pass\n"  # said before it starts
    assert re.findall(r"^\[(\d)/4\]", study.ended.err, re.MULTILINE) == ["1", "2", "3", "4"]
    assert "/4]" not in study.ended.out


def test_summary_names_the_folder_of_the_results(single: Finished, study: Finished) -> None:
    """The last lines of the summary are where the files are, and the page to open."""
    for finished in (single, study):
        folder = finished.folder.relative_to(finished.cwd)
        page = [f"report:  {folder}/report.html"] if finished is study else []
        assert finished.ended.out.splitlines()[-1 - len(page) :] == [f"results: {folder}", *page]


def test_summary_names_verdict_reason_and_fix(single: Finished) -> None:
    """A window of milliseconds is invalid; the summary says why and what to do."""
    assert re.search(r"^verdict +invalid \(synthetic: not a measurement\)$", single.ended.out, re.MULTILINE)
    assert "raise measurement.min_duration_seconds" in single.ended.out


def test_one_experiment_writes_four_files_into_a_folder_named_after_the_model(single: Finished) -> None:
    """{slug}_{UTC timestamp}/ with the result, its configuration, the machine and the series."""
    assert re.fullmatch(r"m_\d{8}T\d{6}Z", single.folder.name)
    assert tree(single.folder) == {"result.json", "config.json", "environment.json", "timeseries.parquet"}


def test_quiet_still_prints_the_summary(tmp_path: Path) -> None:
    """-q takes progress away, never the numbers."""
    ended = llem("run", write(tmp_path, {"execution": {"n_cycles": 1}, "sweep": {"n": [2]}}), "-q", cwd=tmp_path)

    assert ended.err == ""
    assert "1 of 1 run completed" in ended.out


def test_json_of_one_experiment_is_its_result_alone(tmp_path: Path) -> None:
    """`llem run --json | json.tool` works, and gives what was stored."""
    file = write(tmp_path)
    pipeline = f"set -o pipefail; {LLEM} run {file} --json -o out | {sys.executable} -m json.tool"

    piped = subprocess.run(["bash", "-c", pipeline], capture_output=True, text=True, check=False, cwd=tmp_path)

    assert (piped.returncode, piped.stderr) == (0, "")
    printed = ExperimentResult.from_json(piped.stdout)
    (stored,) = (tmp_path / "out").glob("*/result.json")
    assert printed == ExperimentResult.from_json(stored).model_copy(update={"timeseries": printed.timeseries})


def test_json_of_a_study_is_its_study_result_alone(tmp_path: Path) -> None:
    """With --json a study prints its StudyResult even when a run failed; the exit code tells."""
    body = {"sweep": {"n": [2]}, "synthetic": {"fail_after_batches": 0}, "execution": {"n_cycles": 1}}

    ended = llem("run", write(tmp_path, body), "--json", cwd=tmp_path)

    printed = StudyResult.from_json(ended.out)
    assert printed.summary["failed"] == 1
    assert ended.code == 1


def test_verbose_adds_the_runs_events(tmp_path: Path) -> None:
    """-v shows each phase with its time."""
    ended = llem("run", write(tmp_path), "-v", cwd=tmp_path)

    phases = re.findall(r"^ +[\d.]+ s  (\w+) \d+/\d+$", ended.err, re.MULTILINE)
    assert [p for p in phases if p in ("load", "warmup", "window", "result")][-1] == "result"
    assert phases.index("load") < phases.index("window")


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_traceback_only_with_verbose(tmp_path: Path, flag: str) -> None:
    """An error is a sentence; who asks with -v gets the traceback, too."""
    file = write(tmp_path, {"synthetic": {"fail_after_batches": 0}})

    plain, verbose = llem("run", file, cwd=tmp_path), llem("run", file, flag, cwd=tmp_path)

    assert "Traceback" not in plain.err
    assert "Traceback (most recent call last)" in verbose.err
    assert (
        plain.errors == verbose.errors == ["error: synthetic engine failed after 0 batches, as fail_after_batches asks"]
    )


def test_no_control_sequences_off_a_terminal(single: Finished, study: Finished, tmp_path: Path) -> None:
    """Logs of CI hold text, not colours or cursor movements."""
    bad = llem("run", "--nope", cwd=tmp_path)

    for text in (single.ended.out, single.ended.err, study.ended.out, study.ended.err, bad.err):
        assert ANSI not in text
        assert "\r" not in text


def on_terminal(words: list[object], cwd: Path, env: dict[str, str]) -> str:
    """What a person sees: stderr of `llem WORDS…` on a pseudo-terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    child = subprocess.Popen(
        [str(LLEM), *map(str, words)],
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        cwd=cwd,
        env=environment(env),
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux: EIO when the other side is closed
            break
        if not part:
            break
        seen += part
    child.wait()
    os.close(ours)
    return seen.decode()


def test_terminal_gets_a_bar_and_no_colour(tmp_path: Path) -> None:
    """On a terminal a bar moves in place; NO_COLOR is respected, since there is no colour at all."""
    seen = on_terminal(["run", write(tmp_path)], tmp_path, {"NO_COLOR": "1", "TERM": "xterm-256color"})

    assert "\r" in seen
    assert "0.0/1" in seen
    assert not re.search(r"\x1b\[[\d;]*m", seen)


def test_terminal_shows_the_phase_once_and_each_runs_result(tmp_path: Path) -> None:
    """Before the bar the run, behind it its phase; what came of a run stays on the screen as it does in a pipe."""
    file = write(tmp_path, {"sweep": {"n": [2]}, "execution": {"n_cycles": 2}})

    seen = on_terminal(["run", file], tmp_path, {"TERM": "xterm-256color"})

    bars = [part for part in re.split(r"[\r\n]", seen) if "|" in part]
    assert not any(part.count("synthetic") > 1 for part in bars), bars
    assert any(re.match(r"synthetic bf16: .*, window\]", part) for part in bars), bars
    assert len(re.findall(r"synthetic bf16: [\d.]+ tokens/s, .*[(]synthetic[)]", seen)) == 2


def test_verbose_shows_no_counts_of_an_error(tmp_path: Path) -> None:
    """An error has neither a time nor a share of its phase; its sentence follows."""
    body = {"sweep": {"n": [2]}, "synthetic": {"fail_after_batches": 0}, "execution": {"n_cycles": 1}}

    ended = llem("run", write(tmp_path, body), "-v", cwd=tmp_path)

    assert "None" not in ended.err
    assert "FAILED: synthetic engine failed after 0 batches" in ended.err


def test_usage_error_on_a_terminal_has_no_colour(tmp_path: Path) -> None:
    """A usage error is plain text, too."""
    seen = on_terminal(["run", "--nope"], tmp_path, {"NO_COLOR": "1", "TERM": "xterm-256color"})

    assert "No such option" in seen
    assert ANSI not in seen


def test_exported_csv_loads_in_pandas(study: Finished) -> None:
    """--export-csv gives one row per run, failed ones without quantities, units in the names, numbers as numbers."""
    pandas = pytest.importorskip("pandas")

    table = pandas.read_csv(study.cwd / "table.csv")

    assert table["status"].value_counts().to_dict() == {"completed": 2, "failed": 2}
    done = table[table["status"] == "completed"]
    assert done["tokens_per_second"].dtype.kind == "f"
    assert (done["energy_total_j"] > 0).all()
    assert set(done["verdict.state"]) == {"invalid"}
    assert table[table["status"] == "failed"]["energy_total_j"].isna().all()
    stored = [json.loads(p.read_text()) for p in sorted(study.folder.glob("runs/*/result.json"))]
    assert done["experiment_id"].tolist() == [r["experiment_id"] for r in stored]
    assert done["energy_total_j"].tolist() == [r["energy_total_j"] for r in stored]


def test_exported_csv_needs_no_pandas(tmp_path: Path) -> None:
    """The file is plain CSV: one header, as many cells in each row; also for one experiment."""
    llem("run", write(tmp_path), "--export-csv", "one.csv", cwd=tmp_path)

    rows = list(csv.reader((tmp_path / "one.csv").open(encoding="utf-8", newline="")))
    assert [len(r) for r in rows] == [len(rows[0])] * 2
    assert dict(zip(*rows, strict=True))["model"] == FAST["model"]


@pytest.mark.parametrize("kind", ["experiment", "study", "result"])
def test_schema_is_a_json_schema_that_accepts_what_llem_accepts(kind: str, single: Finished, tmp_path: Path) -> None:
    """`llem schema` prints JSON that validates a file of its kind and refuses a wrong type."""
    import jsonschema

    ended = llem("schema", kind, cwd=tmp_path)

    schema = json.loads(ended.out)
    jsonschema.Draft202012Validator.check_schema(schema)
    good = {
        "experiment": FAST,
        "study": {**FAST, "sweep": {"n": [1, 2]}, "execution": {"n_cycles": 2}},
        "result": json.loads((single.folder / "result.json").read_text()),
    }[kind]
    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**good, "model": 5}, schema)


def test_schema_loads_no_engine(tmp_path: Path, heavy_imports: Callable[[], list[str]]) -> None:
    """Building a schema reads settings only."""
    assert llem("schema", "study", cwd=tmp_path).code == 0
    assert heavy_imports() == []
