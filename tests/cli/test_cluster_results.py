"""`llem results`: the table of `llem run`, made of what each run left in its status."""

import csv
import io
from typing import Any

import pytest

from cli.cluster_objects import condition, experiment, hashes, measured, study
from llenergymeasure import cluster_results
from llenergymeasure.core.statistics import statistic

SLOW, FAST = hashes()[0], hashes()[3]


def finished() -> list[dict[str, Any]]:
    """Two configurations over two cycles; one run is invalid, one has no energy, one failed."""
    failed = experiment(
        condition("Finished", "True", "OutOfGPUMemory", "the batch does not fit"),
        condition("Succeeded", "False", "OutOfGPUMemory"),
        index=6, cycle=2, config_hash=hashes()[2], attempt=1,
    )  # fmt: skip
    return [
        measured(7, cycle=2, config_hash=FAST, millijoules="110.0"),
        measured(0, cycle=1, config_hash=SLOW, millijoules=None, verdict="unmeasured", reason="no counter on this GPU"),
        measured(3, cycle=1, config_hash=FAST, millijoules="90.00"),
        measured(4, cycle=2, config_hash=SLOW, millijoules="999.0", verdict="invalid"),
        failed,
    ]


def results() -> cluster_results.Results:
    """The study above as it would be collected."""
    return cluster_results.results_of(study(counts={"total": 8}), finished())


def test_table_compares_configurations_over_cycles() -> None:
    """Best first; mean and interval over cycles as `llem run` has them; reasons, failures and places follow."""
    lines = cluster_results.text(results()).splitlines()

    head = lines[0].split("  ")
    assert [c.strip() for c in head if c.strip()] == [
        "configuration", "tokens/s", "rel. speed", "latency p50 (ms)", "J/token", "verdict",
    ]  # fmt: skip
    assert lines[2].startswith("synthetic n=20 precision=bf16")
    assert "0.1 ± 0.13" in lines[2]
    assert lines[2].endswith("valid")
    assert "1 invalid, 1 unmeasured" in lines[3]
    assert "no energy in run 0: no counter on this GPU" in lines
    assert "failed run 6 (cycle 2, synthetic n=10 precision=bf16): OutOfGPUMemory: the batch does not fit" in lines
    assert "4 of 8 runs completed" in lines
    assert lines[-1].split() == [
        "7", "2", "valid", f"s3://bench/llem/sweep-11112222/00007-{FAST[:8]}-c2/a1/result.json",
    ]  # fmt: skip


def test_pretended_configurations_are_marked_and_never_best_beside_measured_ones() -> None:
    """As in the table of `llem run`: a word in the row, and a sentence below."""
    runs = [
        measured(3, cycle=1, config_hash=FAST, millijoules="10.00"),
        measured(0, cycle=1, config_hash=SLOW, millijoules="90.00"),
    ]
    runs[0]["status"]["summary"]["synthetic"] = True
    lines = cluster_results.text(cluster_results.results_of(study(counts={"total": 2}), runs)).splitlines()

    assert [line.rpartition("  ")[2] for line in lines[2:4]] == ["valid", "valid (synthetic)"]
    assert "Results marked synthetic are pretended, not measured." in lines


def test_invalid_cycles_have_no_say_in_energy() -> None:
    """A result that must not be believed counts as a verdict, not as joules."""
    by_hash = {s.config_hash: s for s in cluster_results.statistics(results())}

    assert by_hash[SLOW].verdicts == {"unmeasured": 1, "invalid": 1}
    assert "energy_per_output_token_j" not in by_hash[SLOW].statistics
    assert by_hash[FAST].statistics["energy_per_output_token_j"] == statistic([0.09, 0.11])


def test_estimates_are_labelled_and_make_way_for_counts() -> None:
    """Alone they are a mean that is called an estimate; beside a valid cycle they are left out, and it is said."""
    runs = [
        measured(7, cycle=2, config_hash=FAST, millijoules="110.0"),
        measured(3, cycle=1, config_hash=FAST, millijoules="10.00", verdict="estimated"),
        measured(0, cycle=1, config_hash=SLOW, millijoules="50.0", verdict="estimated"),
    ]
    found = cluster_results.results_of(study(counts={"total": 8}), runs)

    text = cluster_results.text(found).splitlines()

    assert [" 0.11 " in text[2], "0.05 (estimate)" in text[3]] == [True, True]
    assert (
        "Left out of the joules, as estimates beside valid runs: 1 of 2 runs of synthetic n=20 precision=bf16." in text
    )


def test_numbers_come_in_the_units_of_a_result() -> None:
    """mJ become J; power is energy over the window."""
    row = next(r for r in results().rows if r.index == 3)

    assert row.quantities["energy_per_output_token_j"] == pytest.approx(0.09)
    assert row.quantities["mean_power_w"] == pytest.approx(5.0)


def test_experiments_of_others_with_the_same_label_do_not_count() -> None:
    """Membership is the owner's UID: a label may be written by anybody."""
    stranger = measured(5, cycle=1, config_hash=FAST, millijoules="1.000")
    stranger["metadata"]["ownerReferences"][0]["uid"] = "another"

    found = cluster_results.results_of(study(), [*finished(), stranger])

    assert 5 not in [r.index for r in found.rows]


def test_configuration_that_this_version_would_not_make_is_named_by_its_hash() -> None:
    """A cluster may run another version than the command line: the row stays."""
    foreign = measured(0, cycle=1, config_hash="f" * 16, millijoules="1.000")

    assert "configuration ffffffff" in cluster_results.text(cluster_results.results_of(study(), [foreign]))


def test_json_and_csv_hold_a_row_per_run() -> None:
    """Programs get every run, with units in the names, also those without a result."""
    shown = cluster_results.as_json(results())
    rows = list(csv.DictReader(io.StringIO(cluster_results.csv_text(results()))))

    assert set(shown) == {"name", "results_uri", "summary", "experiments", "runs"}
    assert shown["summary"] == {"runs": 8, "completed": 4, "failed": 1, "invalid": 1}
    assert [r["index"] for r in shown["runs"]] == [0, 3, 4, 6, 7]
    assert [r["index"] for r in rows] == ["0", "3", "4", "6", "7"]
    assert rows[1]["energy_per_output_token_j"] == "0.09"
    assert rows[3]["problem"].startswith("OutOfGPUMemory")


def test_experiment_alone_is_a_study_of_one() -> None:
    """A standalone experiment has a table, too."""
    alone = measured(0, cycle=1, config_hash="", millijoules="95.04")
    del alone["spec"]["studyRef"], alone["spec"]["configHash"]

    found = cluster_results.results_of(alone, [])

    assert "0.09504" in cluster_results.text(found)
    assert found.all_valid
