"""What a study found, in words: the best one, how sure that is, and what is said when nothing can be said."""

import re
from typing import Any

import pytest

from llenergymeasure.core.comparison import PairComparison, QuantityComparison
from llenergymeasure.core.result import ExperimentResult, ExperimentStatistics, FailedRun, Statistic, StudyResult
from llenergymeasure.findings import (
    ENERGY,
    SPEED,
    Told,
    alike,
    headline,
    interval,
    latency_of,
    left_out,
    rank_all,
    study_labels,
    verdict_reasons,
    warnings,
)
from llenergymeasure.report import comparison, single, studies_summary
from report.studies import START

RAN = {"runs": 1, "ran": 1, "failed": 0, "skipped": 0}


def configuration(
    name: str, energy: float | None, speed: float = 10, *, n: int = 3, verdicts: dict[str, int] | None = None
) -> ExperimentStatistics:
    values = {SPEED: speed} | ({} if energy is None else {ENERGY: energy})
    half = 0.1 if n > 1 else None
    return ExperimentStatistics(
        config_hash=name, summary=f"config {name}", cycles_completed=n, verdicts=verdicts or {"valid": n},
        statistics={k: Statistic(mean=v, n=n, half_width_95=half) for k, v in values.items()},
    )  # fmt: skip


def study(*experiments: ExperimentStatistics, **fields: Any) -> StudyResult:
    return StudyResult.model_validate(
        {"name": "s", "study_design_hash": "0" * 16, "experiments": list(experiments), **fields}
    )


def pair(b: str, ratio: float, finding: str) -> PairComparison:
    return PairComparison.model_validate(
        {"a_hash": "a", "b_hash": b, "a_summary": "", "b_summary": "", "cycles": 3, "ratio": ratio,
         "ratio_low": ratio - 0.05, "ratio_high": ratio + 0.05, "finding": finding, "largest_difference": 0.1}
    )  # fmt: skip


def compared(*pairs: PairComparison, **fields: Any) -> QuantityComparison:
    return QuantityComparison.model_validate({"quantity": ENERGY, "against_best": list(pairs), **fields})


def result(**fields: Any) -> ExperimentResult:
    return ExperimentResult.model_validate(
        {
            "experiment_id": "e", "measurement_config_hash": "a", "model": "m", "backend": "synthetic",
            "measurement_methodology": "steady_state", "input_tokens": 1, "output_tokens": 1, "total_tokens": 2,
            "requests": 1, "verdict": {"state": "valid"}, "duration_s": 1, "tokens_per_second": 1,
            "total_tokens_per_second": 1, "requests_per_second": 1, "start_time": START, "end_time": START, **fields,
        }
    )  # fmt: skip


def test_several_studies_share_one_ranking() -> None:
    """The best of all studies comes first, each place knows its study, and ranks count from one."""
    order = rank_all(
        [
            Told(study(configuration("a", 3.0), configuration("b", None, 99)), []),
            Told(study(configuration("c", 2.0)), []),
        ]
    )
    assert [(r.rank, r.study, r.experiment.config_hash) for r in order] == [(1, 1, "c"), (2, 0, "a"), (3, 0, "b")]


@pytest.mark.parametrize(
    ("studies", "labels"),
    [
        ([study(name="x"), study(name="y")], ["x", "y"]),
        ([study(directory="/r/s_1"), study(directory="/r/s_2")], ["s_1", "s_2"]),
        ([study(directory="/q/s"), study(directory="/r/s")], ["s (1)", "s (2)"]),
    ],
    ids=["names", "folders", "numbers"],
)
def test_studies_have_labels_that_tell_them_apart(studies: list[StudyResult], labels: list[str]) -> None:
    """A name where names differ, else the folder, else a number."""
    assert study_labels(studies) == labels


@pytest.mark.parametrize(
    ("modes", "word"),
    [
        (["per_request_batch"] * 2, "batch"),
        (["per_request", "per_request"], "request"),
        (["per_request", "per_request_batch"], "latency"),
        ([], "latency"),
    ],
)
def test_latencies_are_named_after_what_they_are_of(modes: list[str], word: str) -> None:
    """Static batches give the latency of a batch, saturated windows that of a request; neither word is for both."""
    figures = dict.fromkeys(("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "min_ms", "max_ms"), 1.0)
    results = [result(latency={"mode": mode, "samples": 1, **figures}) for mode in modes]
    assert latency_of(results) == word
    assert f"  {word} p50 (ms)  " in comparison([], results)
    assert all(f"\n{latency_of([r])} p50 (ms)  " in single(r) for r in results)


@pytest.mark.parametrize(
    ("of", "told"),
    [
        ({"engine_effective": {"batch_size": 4}}, "batch 4"),
        (
            {"engine_effective": {"batch_size": 1}, "window_mode": "saturated", "work": {"concurrency": 8}},
            "concurrency 8",
        ),
    ],
)
def test_a_run_names_how_many_requests_ran_at_once(of: dict[str, Any], told: str) -> None:
    """With continuous batching no batch has a size."""
    line = next(x for x in single(result(**of)).splitlines() if x.startswith("configuration"))
    assert line.endswith(f", {told}")


def test_headline_gives_figure_interval_and_the_next_one() -> None:
    """The best one with its interval; the ratio to the next with the interval of the comparison."""
    told = study(
        configuration("b", 3.0),
        configuration("a", 2.0),
        comparisons=[compared(pair("b", 1.5, "higher"), smallest_detectable_difference=0.0123)],
    )
    found = headline([Told(told, [])])
    assert found.sentence == "Best: config a, 2 ± 0.1 J per output token"
    assert found.interval is not None
    assert found.interval.meaning == "95 % interval over 3 cycles"
    assert found.sureness == (
        "The next, config b, has, compared cycle by cycle, 1.5 times the energy per output token (95 %: 1.45 to 1.55).",
        "The best differs from every other configuration by more than chance explains.",
        "With these cycles a difference of 1.2 % or more is found in four cases of five.",
    )


def test_comparison_the_other_way_round_is_turned() -> None:
    """A pair given as best to other is shown as other to best."""
    turned = pair("b", 0.5, "lower").model_copy(update={"a_hash": "b", "b_hash": "a", "ratio_low": 0.4})
    told = study(configuration("a", 2.0), configuration("b", 4.0), comparisons=[compared(turned)])
    assert (
        headline([Told(told, [])])
        .sureness[0]
        .endswith("cycle by cycle, 2 times the energy per output token (95 %: 1.818 to 2.5).")
    )


def test_what_cannot_be_told_apart_is_named() -> None:
    """Configurations whose interval contains equality are listed, four and more as a number; and marked."""
    others = [configuration(c, 2.0 + i / 100) for i, c in enumerate("bcdef", start=1)]
    pairs = [pair(c, 1.01, "no_difference") for c in "bcde"] + [pair("f", 1.2, "higher")]
    told = [Told(study(configuration("a", 2.0), *others, comparisons=[compared(*pairs)]), [])]
    found = headline(told)
    assert "Cannot be told apart from the best: config b; config c; config d; and 1 more." in found.sureness
    assert alike(told, found) == frozenset("bcde")


def test_what_was_not_compared_is_not_said_to_differ() -> None:
    """A configuration with too few cycles has no pair: it is named apart from those that differ."""
    told = study(
        configuration("a", 2.0), configuration("b", 3.0), configuration("c", 4.0, n=1),
        comparisons=[compared(pair("b", 1.5, "higher"))],
    )  # fmt: skip
    assert headline([Told(told, [])]).sureness[1] == (
        "The best differs from every other configuration that could be compared by more than chance explains. "
        "Too few cycles to compare with: config c."
    )


def test_disagreement_of_means_and_cycles_is_told() -> None:
    """Where the comparison within cycles puts another one first, the order is called uncertain."""
    ahead = pair("b", 0.99, "no_difference").model_copy(update={"a_hash": "b", "b_hash": "a", "ratio": 1.01})
    told = study(configuration("a", 2.0), configuration("b", 2.01), comparisons=[compared(ahead, best_hash="b")])
    assert headline([Told(told, [])]).sureness[1] == (
        "Compared cycle by cycle, config b comes first: which one is better is not certain."
    )


def test_why_nothing_is_claimed_is_said() -> None:
    """The comparison's own reason stands where a claim would."""
    told = study(
        configuration("a", 2.0), configuration("b", 3.0), comparisons=[compared(reason="one_cycle: one is not enough")]
    )
    assert headline([Told(told, [])]).sureness == (
        "The next, config b, has 1.5 times the energy per output token.",
        "How sure that is cannot be told: one is not enough.",
    )


def test_without_energy_the_fastest_is_named() -> None:
    """Speed ranks, and nothing is said in joules."""
    found = headline([Told(study(configuration("a", None, 5), configuration("b", None, 7)), [])])
    assert (found.title, found.quantity, found.unit) == ("Fastest", SPEED, "output tokens/s")
    assert found.sureness[0] == "The next, config a, has 0.7143 times the output tokens/s."


GUESSED = {"verdicts": {"estimated": 3}}


def test_an_estimate_is_never_the_best() -> None:
    """Less by a model than by a counter ranks below it; no ratio is given, and the sentence says whose it is."""
    told = study(configuration("a", 1.0, 99, **GUESSED), configuration("b", 3.0), configuration("c", 2.0))
    found = headline([Told(told, [])])
    assert [r.experiment.config_hash for r in rank_all([Told(told, [])])] == ["c", "b", "a"]
    assert found.sentence == "Best: config c, 2 ± 0.1 J per output token"
    assert found.sureness[0] == "The next, config b, has 1.5 times the energy per output token."
    assert found.sureness[-1] == "Nothing is claimed about energy that is a model's estimate: that of config a."


def test_with_estimates_alone_the_fastest_is_named() -> None:
    """No sentence about the best in joules."""
    told = study(configuration("a", 1.0, 5, **GUESSED), configuration("b", 2.0, 7, **GUESSED))
    found = headline([Told(told, [])])
    assert (found.title, found.quantity) == ("Fastest", SPEED)
    assert found.sureness[-1].endswith("that is a model's estimate: that of every configuration.")


def test_estimated_joules_are_shown_and_called_so() -> None:
    """In the table's cell, without the width that their repetition would have."""
    guessed = configuration("a", 1.5, **GUESSED)
    (ranking,) = rank_all([Told(study(guessed), [])])
    found = interval(ranking, ENERGY, [])
    assert found is not None
    assert (found.text, found.half_width) == ("1.5 (estimate)", None)
    assert " (estimate)  " in comparison([guessed], [])
    assert " (estimate)" not in comparison([configuration("b", 1.5)], [])


def test_estimates_that_were_left_out_are_counted() -> None:
    """Only where valid runs of the same configuration have the say."""
    mixed = configuration("a", 2.0, n=5, verdicts={"valid": 3, "estimated": 2})
    others = [configuration("b", 2.0, **GUESSED), configuration("c", 2.0, verdicts={"valid": 2, "invalid": 1})]
    said = "Left out of the joules, as estimates beside valid runs: 2 of 5 runs of config a."
    assert left_out([mixed, *others]) == said
    assert left_out(others) is None
    assert said in comparison([mixed, *others], [])


def test_the_single_valid_run_lends_its_uncertainty() -> None:
    """Not an estimate of the same configuration that was there before it."""
    (ranking,) = rank_all([Told(study(configuration("a", 2.0, n=1, verdicts={"valid": 1, "estimated": 1})), [])])
    runs = [
        result(verdict={"state": state}, uncertainty={"comparison": u}, energy_per_output_token_j=2.0)
        for state, u in (("estimated", 0.5), ("valid", 0.02))
    ]
    found = interval(ranking, ENERGY, runs)
    assert found is not None
    assert found.half_width == pytest.approx(0.04)


def test_studies_are_not_compared_with_each_other() -> None:
    """No interval is claimed across studies: the runs did not take turns."""
    found = headline([Told(study(configuration("a", 2.0)), []), Told(study(configuration("b", 3.0), name="t"), [])])
    assert found.sureness == (
        "The next, config b, has 1.5 times the energy per output token, in another study.",
        "Studies are ranked by their means: how sure a difference is can only be told within a study.",
    )


def test_what_holds_in_one_study_is_not_said_of_all() -> None:
    """The best one's rivals in its own study are apart, the same configuration in another one is not: one next one."""
    a, b = configuration("a", 2.0), configuration("b", 12.0)
    pairs = compared(pair("b", 6.0, "higher"))
    both = [Told(study(configuration("a", 2.02)), []), Told(study(a, b, comparisons=[pairs], name="t"), [])]

    told = headline(both).sureness

    assert told[:3] == (
        "The next, config a, has 1.01 times the energy per output token, in another study.",
        "The second of its own study, config b, has, compared cycle by cycle, 6 times the energy per output token (95 %: 5.95 to 6.05).",
        "The best differs from every other configuration of its study by more than chance explains.",
    )


def test_what_is_pretended_is_never_best_beside_what_was_measured() -> None:
    """Fewer joules of a pretended sensor come last, marked, without a ratio; among themselves they are ranked."""
    pretended = Told(study(configuration("a", 1.0, 99), configuration("b", 1.5, 98), name="p", summary=RAN),
                     [result(synthetic=True), result(synthetic=True, measurement_config_hash="b")])  # fmt: skip
    measured = Told(study(configuration("m", 2.0), summary=RAN), [result(measurement_config_hash="m")])

    found = headline([pretended, measured])
    lines = studies_summary([pretended, measured]).splitlines()[2:5]

    assert found.sentence == "Best: config m, 2 ± 0.1 J per output token"
    assert found.sureness == (
        "It is the only configuration with this figure: there is nothing to compare it with.",
        "Not compared with what was measured, because it is pretended: config a; config b.",
    )
    assert [re.split(" {2,}", line)[::3] for line in lines] == [
        ["config m", "1.00x", "valid"], ["config a", "-", "valid (synthetic)"], ["config b", "-", "valid (synthetic)"],
    ]  # fmt: skip
    assert headline([pretended]).sentence.startswith("Best: config a, 1 ")


def test_a_pretended_run_with_figures_comes_before_a_measured_one_without() -> None:
    """Where nothing could be measured, what was pretended is still shown as found."""
    nothing = configuration("m", 2.0).model_copy(update={"statistics": {}})
    order = rank_all([Told(study(nothing, configuration("a", 1.0)), [result(synthetic=True)])])
    assert [r.experiment.config_hash for r in order] == ["a", "m"]


def test_studies_of_one_gpu_in_two_calibrations_have_no_common_scale() -> None:
    """Their means are not those of the same joule, and it is said."""

    def on(gain: float | None) -> ExperimentResult:
        return result(energy_per_device_j={"GPU-a": 1.0}, sensors={"GPU-a": {"gain": gain}})

    one, other = study(configuration("a", 2.0)), study(configuration("b", 3.0), name="t")
    assert headline([Told(one, [on(1.05)]), Told(other, [on(1.05)])]).sureness[-1].startswith("Studies are ranked")
    said = headline([Told(one, [on(1.05)]), Told(other, [on(None)])]).sureness[-1]
    assert said.startswith("Not even that holds: the joules of GPU-a (gain 1.05, offset 0 W, then as read) were not")


def test_nothing_measured_is_said_with_the_number_of_failures() -> None:
    """A study in which everything failed has no best configuration."""
    failed = [FailedRun(index=i, cycle=1, config_hash="a", summary="x") for i in range(2)]
    found = headline([Told(study(summary={"runs": 2}, failed=failed), [])])
    assert (found.best, found.sentence) == (None, "Nothing was measured: 2 of 2 runs failed")


def test_single_run_has_the_uncertainty_of_its_own_result() -> None:
    """One cycle has no t-interval: the result's own uncertainty stands in, and says that a part is assumed."""
    (ranking,) = rank_all([Told(study(configuration("a", 2.0, n=1)), [])])
    u = {"comparison": 0.02, "between_runs_source": "assumed"}
    found = interval(ranking, ENERGY, [result(uncertainty=u, energy_per_output_token_j=2.0)])
    assert found is not None
    assert (found.half_width, found.meaning) == (
        pytest.approx(0.04),
        "one run: its own uncertainty, 95 %, its part between runs assumed",
    )
    speed = interval(ranking, SPEED, [])
    assert speed is not None
    assert speed.half_width is None


def test_warnings_are_grouped_by_code_with_their_fix() -> None:
    """Each code once, its figures as a range, what apart from what to do."""
    results = [result(measurement_warnings=[f"hot: {c} C; cool it"]) for c in (95, 90, 93)] + [result()]
    (found,) = warnings(results)
    assert (found.code, found.what, found.fix, found.extent) == ("hot", "90 to 95 C", "cool it", "3 of 4 runs")


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([("a", "GPU-1", 47, "valid"), ("a", "GPU-1", 52.1, "valid")], "47 to 52 °C"),
        ([("a", "GPU-1", 47, "valid"), ("a", "GPU-1", 52, "valid")], None),
        ([("a", "GPU-1", 47, "valid"), ("a", "GPU-2", 60, "valid")], None),
        ([("a", "GPU-1", 47, "valid"), ("b", "GPU-1", 60, "valid")], None),
        ([("a", "GPU-1", 47, "valid"), ("a", "GPU-1", 60, "invalid")], None),
        ([("a", "GPU-1", 47, "valid"), ("a", "GPU-1", None, "valid")], None),
        ([], None),
    ],
)
def test_cycles_at_other_temperatures_are_told(
    runs: list[tuple[str, str, float | None, str]], said: str | None
) -> None:
    """More than 5 °C between believed runs of one configuration on one board; boards and configurations may differ."""
    results = [
        result(
            measurement_config_hash=name,
            energy_per_device_j={gpu: 1.0},
            conditions={"temperature_c": warmth},
            verdict={"state": state},
        )
        for name, gpu, warmth, state in runs
    ]
    found = warnings(results)
    assert [(f.code, said is not None and said in f.what, f.extent) for f in found] == (
        [("temperature_between_cycles", True, "2 of 2 runs")] if said else []
    )


def test_what_differs_in_more_than_figures_keeps_the_first_words_and_says_so() -> None:
    """Two GPUs are no range."""
    results = [result(measurement_warnings=[f"display: drawn on GPU-{name}"]) for name in ("a1", "b2")]
    (found,) = warnings(results)
    assert (found.what, found.extent) == ("drawn on GPU-a1", "2 of 2 runs, in the words of the first")


def test_reasons_of_verdicts_are_grouped_by_state_and_code() -> None:
    """A code is one line however its figures differ; two states are two lines."""

    def judged(state: str, seconds: float) -> ExperimentResult:
        reason = {"code": "short", "sentence": f"It lasted {seconds:.2f} s; below 5 s.", "fix": "at least 10 s"}
        return result(verdict={"state": state, "reasons": [reason]})

    found = verdict_reasons([judged("invalid", 3.12), judged("invalid", 0.5), judged("estimated", 3)])
    assert {state: [(f.what, f.fix, f.extent) for f in reasons] for state, reasons in found.items()} == {
        "invalid": [("It lasted 0.50 to 3.12 s; below 5 s.", "at least 10 s", "2 of 3 runs")],
        "estimated": [("It lasted 3.00 s; below 5 s.", "at least 10 s", "1 of 3 runs")],
    }
