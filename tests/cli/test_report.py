"""What people read at the end: numbers with their uncertainty, best first, and why something is missing."""

import re
from datetime import UTC, datetime

import pytest

from llenergymeasure import StudyResult, report
from llenergymeasure.core.errors import ConfigError, ModelNotFoundError, PreFlightError
from llenergymeasure.core.manifest import ManifestRow, StudyManifest
from llenergymeasure.core.result import ExperimentResult, ExperimentStatistics, FailedRun
from llenergymeasure.core.statistics import Statistic
from llenergymeasure.core.verdict import Evidence, judge
from llenergymeasure.ranking import ranked
from llenergymeasure.wording import duration_text, merged, number

ENERGY, SPEED = "energy_per_output_token_j", "tokens_per_second"


def statistics(
    name: str, *, joules: float | None, speed: float, verdicts: dict[str, int] | None = None
) -> ExperimentStatistics:
    """One configuration over three cycles."""
    values = {SPEED: speed} | ({ENERGY: joules} if joules is not None else {})
    return ExperimentStatistics(
        config_hash=name,
        summary=name,
        cycles_completed=3,
        verdicts=verdicts or {"valid": 3},
        statistics={k: Statistic(mean=v, s=v / 100, n=3, half_width_95=v / 40) for k, v in values.items()},
    )


def rows(table: str) -> list[list[str]]:
    """Cells of a table's rows, split where two blanks or more are."""
    return [re.split(r" {2,}", line.strip()) for line in table.splitlines()[2:]]


def test_fewest_joules_come_first() -> None:
    """With energy the ranking is joules per output token, whatever the speed."""
    found = report.comparison(
        [
            statistics("fast", joules=3.0, speed=900),
            statistics("frugal", joules=1.0, speed=100),
            statistics("middle", joules=2.0, speed=450),
        ],
        [],
    )

    assert [r[0] for r in rows(found)] == ["frugal", "middle", "fast"]
    assert rows(found)[0] == ["frugal", "100 ± 2.5", "0.11x", "-", "1 ± 0.025", "valid"]
    assert rows(found)[2][2] == "1.00x"


def test_a_very_slow_one_still_has_a_share_of_the_speed() -> None:
    """Its share of the fastest one's speed is never 0.00x, and the column says that it is one of speed."""
    table = report.comparison([statistics("a", joules=1.0, speed=1000), statistics("b", joules=2.0, speed=1.2)], [])
    assert [r[2] for r in rows(table)] == ["1.00x", "0.0012x"]
    assert re.split(r" {2,}", table.splitlines()[0])[2] == "rel. speed"


def test_without_energy_the_fastest_comes_first() -> None:
    """Without energy speed ranks, and the missing number is a dash, never a zero."""
    found = report.comparison(
        [statistics("slow", joules=None, speed=10), statistics("fast", joules=None, speed=20)], []
    )

    assert [(r[0], r[4]) for r in rows(found)] == [("fast", "-"), ("slow", "-")]


def test_measured_configurations_come_before_unmeasured_ones() -> None:
    """What has no energy cannot win a ranking by energy."""
    both = [statistics("unmeasured", joules=None, speed=999), statistics("measured", joules=9.0, speed=1)]
    found = ranked([(both, [])])

    assert [r.experiment.summary for r in found] == ["measured", "unmeasured"]


def test_mixed_verdicts_are_counted() -> None:
    """Cycles with different verdicts are shown with their numbers."""
    found = report.comparison([statistics("a", joules=1.0, speed=1, verdicts={"valid": 2, "invalid": 1})], [])

    assert rows(found)[0][-1] == "1 invalid, 2 valid"


def test_failed_and_skipped_runs_are_in_the_summary() -> None:
    """A study without any result still says what failed, with its reason, and how many."""
    study = StudyResult(
        name="s",
        study_design_hash="0" * 16,
        summary={"generated": 3, "runs": 2, "ran": 0, "failed": 2, "skipped": 1, "invalid": 0},
        failed=[
            FailedRun(
                index=0,
                cycle=1,
                config_hash="a",
                summary="pytorch bf16",
                error_type="OutOfMemoryError",
                error_message="2 GB more",
            )
        ],
    )

    text = report.study_summary(study, [])

    assert "failed run 0 (cycle 1, pytorch bf16): OutOfMemoryError: 2 GB more" in text
    assert text.splitlines()[-1] == "0 of 2 runs completed, 2 failed, 1 combination skipped"


def failed_run(index: int, message: str) -> FailedRun:
    """A run whose process reported an error."""
    return FailedRun(
        index=index, cycle=1 + index // 2, config_hash="a", summary=f"n={index}", error_type="E", error_message=message
    )


def test_equal_errors_are_said_once_with_their_runs() -> None:
    """The same error of thirty runs is one line; another one is the next line, without a blank between."""
    study = StudyResult(
        name="s",
        study_design_hash="0" * 16,
        summary={"generated": 9, "runs": 40, "ran": 0, "failed": 31, "skipped": 0, "invalid": 0},
        failed=[*(failed_run(i, "the hub is away") for i in range(30)), failed_run(30, "2 GB more")],
    )

    text = report.study_summary(study, []).splitlines()

    assert text == [
        f"failed runs {', '.join(map(str, range(20)))}, and 10 more: E: the hub is away",
        "failed run 30 (cycle 16, n=30): E: 2 GB more",
        "",
        "0 of 40 runs completed, 31 failed, 9 not run, 0 combinations skipped",
    ]


@pytest.mark.parametrize(
    ("directory", "way_on"),
    [
        ("results/s", "; mend the cause, then go on with: llem run --resume results/s"),
        ("s3://bucket/s", ""),
        (None, ""),
    ],
    ids=["here", "in a store", "nowhere"],
)
def test_a_study_that_stopped_says_why_and_how_it_goes_on(directory: str | None, way_on: str) -> None:
    """After the breaker opened: how many failures it took, how many runs never started, the command that goes on."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [ManifestRow(index=i, cycle=1, config_hash="a", summary=f"n={i}") for i in range(5)]
    manifest = StudyManifest(name="s", study_design_hash="0" * 16, tool_version="2", started_at=now, rows=tuple(rows))
    for i in range(3):
        manifest = manifest.mark_running(i, now).mark_failed(i, now, error_type="E", error_message="no")
    study = StudyResult(
        name="s", study_design_hash="0" * 16, directory=directory, measurement_protocol={"max_consecutive_failures": 2}
    )

    by_itself = manifest.finished(now, status="circuit_breaker")

    assert report.stopped(study, by_itself) == [f"stopped after 3 failures in a row; 2 never started{way_on}"]
    assert report.missing_runs(by_itself) == [f"missing run {i} (cycle 1, n={i}): never started" for i in (3, 4)]
    assert report.stopped(study, manifest.interrupted(now)) == []


def test_a_reason_is_one_line_however_many_runs_have_it() -> None:
    """Three windows that were too short are one sentence with its range, one number of runs, one fix."""

    def invalid(seconds: float) -> ExperimentResult:
        verdict = judge(Evidence("counter", 1.0, None, seconds, 0.01))
        return ExperimentResult.model_construct(verdict=verdict, measurement_warnings=[])

    found = report.comparison([], [invalid(3.12), invalid(3.09), invalid(2.9)]).splitlines()

    assert found[-2:] == [
        "invalid (3 of 3 runs): The window lasted 2.90 to 3.12 s; below 5 s the edges dominate.",
        "  -> raise measurement.min_duration_seconds or n, to at least 10 s",
    ]
    assert sum("The window lasted" in line for line in found) == 1


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        (["it was 3 s"], "it was 3 s"),
        (["off by -6.1 % of 2", "off by +5.0 % of 2", "off by -0.5 % of 2"], "off by -6.1 to +5.0 % of 2"),
        (["9,001 MiB", "10,500 MiB"], "9,001 to 10,500 MiB"),
        (["process 12 used GPU-0a for 1 s", "process 12 used GPU-0a for 2 s"], "process 12 used GPU-0a for 1 to 2 s"),
    ],
    ids=["one", "signs", "thousands", "names"],
)
def test_like_sentences_are_one_with_ranges(texts: list[str], shown: str) -> None:
    """The least and the largest of each figure, as they were written."""
    assert merged(texts) == (shown, True)


@pytest.mark.parametrize("other", ["processes 12, 40 used it for 1 s", "process 13 used it for 1 s", "it lasted 1 s"])
def test_sentences_that_name_something_else_are_not_merged(other: str) -> None:
    """Process ids are names, of which there is no range."""
    first = "process 12 used it for 1 s"
    assert merged([first, other]) == (first, False)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"), (0, "0"), (0.0, "0"), (1.23456, "1.235"), (12345.678, "12346"), (0.00012346, "0.0001235"),
        (1e-9, "1.000e-09"), (5e9, "5.000e+09"), (-2.5, "-2.5"), (999999.4, "999999"),
    ],
)  # fmt: skip
def test_numbers_have_four_digits_and_no_exponent_where_people_read_none(value: float | None, shown: str) -> None:
    """Four significant digits, a dash for what was not measured, exponents only far out."""
    assert number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 s"), (59.6, "60 s"), (119, "119 s"), (120, "2 min"), (3600, "60 min"), (7200, "2.0 h"), (86400, "24.0 h")]
)  # fmt: skip
def test_durations_are_in_the_unit_that_fits(seconds: float, shown: str) -> None:
    """Seconds, then minutes, then hours."""
    assert duration_text(seconds) == shown


def test_grid_is_aligned() -> None:
    """Every column is as wide as its widest cell; text on the left, numbers on the right; no trailing blanks."""
    text = report.grid(["name", "n"], [["a", "1"], ["longer", "100"]])

    assert text.splitlines() == ["name      n", "------  ---", "a         1", "longer  100"]


def test_error_of_several_problems_lists_each() -> None:
    """Every failed check is a line of its own; a single one is just its sentence."""
    one, two = ModelNotFoundError("model x: not found"), ConfigError("n: 5; lower n")

    assert (
        report.error_text(PreFlightError([one, two])) == "not ready to run\n  - model x: not found\n  - n: 5; lower n"
    )
    assert report.error_text(PreFlightError([one])) == "model x: not found"


def test_error_of_several_fields_lists_each_once() -> None:
    """A validation error is one line per field, whatever punctuation its messages hold."""
    from pydantic import ValidationError

    from llenergymeasure import ExperimentConfig

    with pytest.raises(ValidationError) as caught:
        ExperimentConfig(model="m", precision="fp8")

    assert report.error_text(caught.value).splitlines() == [
        "the configuration is not valid",
        "  - precision fp8 is not supported by backend pytorch; it supports fp32, fp16, bf16",
    ]


def test_foreign_error_keeps_its_type() -> None:
    """An error nobody foresaw is shown with its type, which a bug report needs."""
    assert report.error_text(ZeroDivisionError("division by zero")) == "ZeroDivisionError: division by zero"
