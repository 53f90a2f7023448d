"""What `llem compare A B` answers: between cycles, studies, single runs and boards; what it leaves out and refuses."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import scipy.stats

from cli.conftest import Finished
from cli.process import Ended, llem, start, write
from llenergymeasure import ExperimentResult
from llenergymeasure.comparing import Comparison, Difference, compare
from llenergymeasure.comparison_text import answer, comparison_json, comparison_text
from llenergymeasure.core.comparison import LATENCY
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.errors import StudyError
from llenergymeasure.sides import Configuration, Side

NOW = datetime(2026, 1, 2, tzinfo=UTC)
A5 = (2.00, 2.02, 1.99, 2.01, 2.00)
B5 = (1.76, 1.77, 1.75, 1.765, 1.758)


def run(name: str, joules: float | None, **more: Any) -> ExperimentResult:
    """A believed run with this many joules per output token on GPU-0."""
    fields: dict[str, Any] = {
        "experiment_id": name, "measurement_config_hash": "h", "model": "m", "backend": "b",
        "measurement_methodology": "windowed", "input_tokens": 1, "output_tokens": 10, "total_tokens": 11, "requests": 1,
        "verdict": {"state": "valid" if joules is not None else "unmeasured"}, "duration_s": 20.0,
        "tokens_per_second": 100.0, "total_tokens_per_second": 110.0, "requests_per_second": 1.0,
        "start_time": NOW, "end_time": NOW, "energy_per_output_token_j": joules,
        "energy_per_device_j": {"GPU-0": 1.0} if joules is not None else None,
        "effective_config": {"n": 100, "dataset": "builtin"},
    }  # fmt: skip
    return ExperimentResult.model_validate({**fields, **more})


def configuration(digest: str, joules: Sequence[float | None], **more: Any) -> Configuration:
    """A configuration with one run per figure."""
    runs = {c: run(f"{digest}/{c}/{joules}", j, **more) for c, j in enumerate(joules, 1)}
    return Configuration(digest, f"configuration {digest}", runs)


def side(*configurations: Configuration, uri: str = "a", picked: int | None = None, order: str = "shuffled") -> Side:
    """A study of these configurations."""
    return Side(uri, uri, order, configurations, picked)


def inside(one: Configuration, other: Configuration, order: str = "shuffled") -> Comparison:
    """Two configurations of one study, the second against the first."""
    return compare(side(one, other, picked=0, order=order), side(one, other, picked=1, order=order))


def between(one: Configuration, other: Configuration) -> Comparison:
    """The only configurations of two studies."""
    return compare(side(one), side(other, uri="b"))


def energy(found: Comparison) -> Difference:
    """The headline of the only pair."""
    (pair,) = found.pairs
    return pair.differences[0]


def width(found: Comparison) -> float:
    """The whole width of the headline's interval as a difference of logarithms."""
    d = energy(found)
    assert d.low is not None
    assert d.high is not None
    return math.log(d.high / d.low)


def test_two_of_one_study_are_compared_within_cycles() -> None:
    """The interval is that of the paired differences, and the sentence says all of it."""
    logs = [math.log(b / a) for a, b in zip(A5, B5, strict=True)]
    wanted = scipy.stats.ttest_1samp(logs, 0).confidence_interval(0.95)

    found = inside(configuration("aa", A5), configuration("bb", B5))

    d = energy(found)
    assert (d.method, d.finding, d.better, d.a_runs) == ("within_cycles", "lower", "b", 5)
    assert (d.low, d.high) == pytest.approx((math.exp(wanted.low), math.exp(wanted.high)))
    said = re.fullmatch(
        r"B needs 12\.\d+ % fewer joules per output token than A "
        r"\(95 % interval ([\d.]+) to ([\d.]+) %, 5 cycles each\)\.",
        answer(found),
    )
    assert said is not None
    assert (float(said[1]), float(said[2])) == pytest.approx(
        (100 * (1 - math.exp(wanted.high)), 100 * (1 - math.exp(wanted.low))), abs=0.06
    )


def test_drift_blurs_only_what_is_not_compared_within_cycles() -> None:
    """A machine that gets 10 % hungrier over the study widens nothing inside it, but everything between studies."""
    one, other = ([j * 1.025**c for c, j in enumerate(row)] for row in (A5, B5))
    both = configuration("aa", one), configuration("bb", other)

    assert width(inside(*both)) == pytest.approx(width(inside(configuration("aa", A5), configuration("bb", B5))))
    assert width(between(*both)) > 5 * width(inside(*both))


def test_different_studies_are_compared_by_configuration() -> None:
    """What both have is compared with itself; the answer counts."""
    a = side(configuration("aa", A5), configuration("bb", B5), configuration("cc", A5))
    b = side(configuration("bb", A5), configuration("aa", B5), configuration("dd", B5), uri="b")

    found = compare(a, b)

    assert [(p.a_hash, p.b_hash, p.differences[0].finding) for p in found.pairs] == [
        ("aa", "aa", "lower"),
        ("bb", "bb", "higher"),
    ]
    assert found.claims == 2
    assert "in 2 common configurations: fewer in 1, more in 1." in answer(found)
    assert found.caveats[0].startswith("measured in different sessions")
    assert comparison_text(found).count("J/output token") == 2


def test_without_common_configurations_the_best_are_compared() -> None:
    """Best of A against best of B, with an interval for all the pairs that might have been chosen."""
    a = side(configuration("aa", B5), configuration("bb", A5))
    b = side(configuration("cc", A5), configuration("dd", [j * 1.5 for j in A5]), uri="b")

    found = compare(a, b)

    assert [(p.a_hash, p.b_hash) for p in found.pairs] == [("aa", "cc")]
    assert (found.chosen, found.claims) == ("the best of each side", 4)


def test_named_configuration_meets_the_best_of_the_others() -> None:
    """PLACE#HASH against PLACE is that configuration against the best of the others."""
    three = (configuration("aa", B5), configuration("bb", A5), configuration("cc", [j * 1.2 for j in A5]))

    found = compare(side(*three, picked=0), side(*three))

    assert [(p.a_hash, p.b_hash) for p in found.pairs] == [("aa", "bb")]
    assert found.claims == 3


def test_no_difference_names_what_may_still_be_there() -> None:
    """Absence of evidence comes with its size."""
    found = inside(configuration("aa", (2.0, 2.02, 1.98)), configuration("bb", (2.01, 1.99, 2.0)))

    d = energy(found)
    assert (d.finding, d.better) == ("no_difference", None)
    assert d.low is not None
    assert d.high is not None
    assert d.largest_difference == max(d.high - 1, 1 - d.low)
    start_of_it = (
        "No difference in joules per output token is seen between A and B; the 95 % interval still allows one of"
    )
    assert answer(found).startswith(f"{start_of_it} {100 * d.largest_difference:.2g} %")


def test_one_run_each_rests_on_what_the_runs_say_of_themselves() -> None:
    """Two runs of ±2 % are compared, and it says what is assumed; speeds have no such figure and no claim."""
    one, other = (configuration(h, [j], uncertainty={"comparison": 0.02}) for h, j in (("aa", 2.0), ("bb", 1.5)))

    found = between(one, other)

    speed = found.pairs[0].differences[1]
    assert energy(found).method == "one_run_assumed"
    assert width(found) / 2 == pytest.approx(0.02 * math.sqrt(2), rel=1e-3)
    assert (speed.ratio, speed.low, speed.finding) == (1.0, None, None)
    assert (speed.reason or "").startswith("one_run: ")
    assert "one run each, run-to-run part assumed" in answer(found)


MEASURED = {"uncertainty": {"comparison": 0.02, "between_runs_source": "measured"}}
ASSUMED = {"uncertainty": {"comparison": 0.02, "between_runs_source": "assumed"}}


@pytest.mark.parametrize(
    ("one", "other", "method", "said"),
    [
        (MEASURED, MEASURED, "one_run_measured", "one run each, run-to-run part measured"),
        (MEASURED, ASSUMED, "one_run_assumed", "one run each, run-to-run part assumed"),
        (MEASURED, None, "one_run_measured", "1 run of A, 5 of B, run-to-run part of the one measured"),
        (ASSUMED, None, "one_run_assumed", "1 run of A, 5 of B, run-to-run part of the one assumed"),
    ],
    ids=["both", "one of two", "against cycles", "assumed against cycles"],
)
def test_a_run_to_run_part_that_was_measured_is_not_called_assumed(
    one: dict[str, Any], other: dict[str, Any] | None, method: str, said: str
) -> None:
    """Sentence, method and caveat say what the single run says of itself."""
    found = between(
        configuration("aa", [2.0], **one), configuration("bb", B5 if other is None else [1.5], **(other or {}))
    )

    assert energy(found).method == method
    assert said in answer(found)
    assert any("its run-to-run part is assumed" in c for c in found.caveats) == (method == "one_run_assumed")
    assert any("is that of earlier studies on its GPU" in c for c in found.caveats) == (method == "one_run_measured")


def test_one_run_without_uncertainty_claims_nothing() -> None:
    """Where a run does not say how sure it is, nobody is."""
    found = between(configuration("aa", [2.0]), configuration("bb", [1.0]))

    assert energy(found).finding is None
    assert answer(found).startswith("No claim about joules per output token: a single run does not say")


def test_sequential_order_claims_nothing_inside_a_study() -> None:
    """Configurations that ran one after the other cannot be told from the machine's drift."""
    found = inside(configuration("aa", A5), configuration("bb", B5), order="sequential")

    assert [d.finding for d in found.pairs[0].differences] == [None] * 3
    assert "cycle_order shuffled" in answer(found)


def test_different_boards_have_their_gain_in_the_interval() -> None:
    """12 % between two uncalibrated boards is no difference; on one board it is. Speed does not care."""
    here, there = (
        between(configuration("aa", A5), configuration("bb", B5, energy_per_device_j={uuid: 1.0}))
        for uuid in ("GPU-0", "GPU-1")
    )

    assert energy(here).finding == "lower"
    assert energy(there).finding == "no_difference"
    assert there.pairs[0].differences[1].gain_allowance == 0
    assert any("different GPUs" in c for c in there.caveats)
    assert not any("different GPUs" in c for c in here.caveats)


def calibrated(uuid: str, gain: float | None, a: float, **more: Any) -> dict[str, Any]:
    """Fields of a run on one GPU whose sensor a calibration file corrected, or did not (None)."""
    return {
        "energy_per_device_j": {uuid: 1.0}, "sensors": {uuid: {"gain": gain, "offset_w": None if gain is None else 0.5}},
        "uncertainty": {"gain_limit": a, "comparison": 0.02}, **more,
    }  # fmt: skip


@pytest.mark.parametrize("set_beside", [inside, between], ids=["of one study", "of two"])
@pytest.mark.parametrize("gain", [None, 1.02], ids=["none", "another"])
def test_joules_of_one_board_in_two_calibrations_have_no_ratio(
    set_beside: Callable[[Configuration, Configuration], Comparison], gain: float | None
) -> None:
    """5 % that only the file made are no finding: it says which GPU, both corrections, and what to do."""
    one = configuration("aa", A5, **calibrated("GPU-0", gain, 0.1 if gain is None else 0.01))
    other = configuration("bb", [1.05 * j for j in A5], **calibrated("GPU-0", 1.05, 0.01))

    found = set_beside(one, other)

    d = energy(found)
    assert (d.finding, d.ratio, (d.reason or "").partition(":")[0]) == (None, None, "different_calibrations")
    was = "as read" if gain is None else "gain 1.02, offset 0.5 W"
    said = answer(found)
    assert f"the joules of GPU-0 ({was}, then gain 1.05, offset 0.5 W) were not corrected alike" in said
    assert "measure all of them with the same --calibration file, or all without" in said
    assert found.pairs[0].differences[1].finding is not None


def test_joules_of_one_board_in_one_calibration_are_compared() -> None:
    """The same correction on both sides cancels."""
    fields = calibrated("GPU-0", 1.05, 0.01)

    found = energy(between(configuration("aa", A5, **fields), configuration("bb", B5, **fields)))

    assert (found.finding, found.gain_allowance) == ("lower", 0.0)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (("GPU-1", 0.97, 0.01), "their calibrations leave that much open, so the interval includes ±1.6 %"),
        (("GPU-1", None, 0.1), "not all of their sensors are calibrated (1 of 2), so the interval includes ±12 %"),
    ],
    ids=["both", "one"],
)
def test_calibrated_boards_are_as_far_apart_as_their_files_leave_open(
    there: tuple[str, float | None, float], said: str
) -> None:
    """Across boards each one's own half-width enters; 12 % fewer are found between two that are known to 1 %."""
    found = between(
        configuration("aa", A5, **calibrated("GPU-0", 1.03, 0.01)), configuration("bb", B5, **calibrated(*there))
    )

    as_normal = scipy.stats.norm.ppf(0.975) * math.hypot(0.01, there[2]) / math.sqrt(3)
    assert energy(found).gain_allowance == pytest.approx(min(as_normal, 0.01 + there[2]))
    assert energy(found).finding == "lower"
    assert any(said in c for c in found.caveats)


def test_invalid_runs_are_left_out_and_named() -> None:
    """A run that may not be believed has no say, and the reader hears of it."""
    broken = run("x", 50.0, verdict={"state": "invalid", "reasons": [{"code": "c", "sentence": "Hot.", "fix": "f"}]})
    one = configuration("aa", A5)

    found = inside(Configuration("aa", one.summary, {**one.runs, 3: broken}), configuration("bb", B5))

    assert energy(found).a_runs == 4
    assert energy(found).finding == "lower"
    assert "1 of 5 runs of A are invalid and left out: Hot." in found.caveats


CAVEATS = [
    pytest.param({"synthetic": True}, "B is pretended, not measured", id="synthetic"),
    pytest.param({"random_weights": True}, "the weights of B are random", id="random weights"),
    pytest.param({"verdict": {"state": "estimated"}}, "the energy of B is a model's estimate", id="estimate"),
    pytest.param({"model": "other"}, "not the same work: model is m in A, other in B", id="model"),
    pytest.param({"effective_config": {"n": 9, "dataset": "builtin"}}, "n is 100 in A, 9 in B", id="prompts"),
    pytest.param({"effective_config": {"n": 100, "dataset": "x"}}, "dataset is builtin in A, x in B", id="dataset"),
]


@pytest.mark.parametrize(("fields", "says"), CAVEATS)
def test_what_limits_the_answer_is_said(fields: dict[str, Any], says: str) -> None:
    """A number that cannot be taken at its face comes with the reason."""
    found = between(configuration("aa", A5), configuration("bb", B5, **fields))

    assert says in comparison_text(found)
    assert any(says in c for c in json.loads(comparison_json(found))["caveats"])


ESTIMATED = {"verdict": {"state": "estimated"}}


@pytest.mark.parametrize("set_beside", [inside, between], ids=["of one study", "of two"])
def test_estimates_have_means_and_no_ratio(
    set_beside: Callable[[Configuration, Configuration], Comparison],
) -> None:
    """A count against a model's estimate: both are shown, one is called an estimate, nothing is claimed."""
    found = set_beside(configuration("aa", A5), configuration("bb", B5, **ESTIMATED))

    d = energy(found)
    assert (d.a_mean, d.b_mean) == pytest.approx((sum(A5) / 5, sum(B5) / 5))
    assert (d.a_estimated, d.b_estimated, d.ratio, d.finding, d.better) == (False, True, None, None, None)
    assert answer(found).startswith(
        "No claim about joules per output token: the energy of B is a model's estimate, not a count of joules."
    )
    assert "1.761 (estimate)" in comparison_text(found)
    assert found.pairs[0].differences[1].ratio == 1.0


def test_estimates_beside_valid_runs_are_left_out_and_counted() -> None:
    """The ratio is that of the valid cycles."""
    one, other = configuration("aa", A5), configuration("bb", B5)
    guesses = {c: run(f"e{c}", 0.5, **ESTIMATED) for c in (2, 4)}

    found = inside(Configuration("aa", one.summary, {**one.runs, **guesses}), other)

    assert energy(found).a_runs == 3
    assert energy(found).ratio == pytest.approx(math.prod(B5[c] / A5[c] for c in (0, 2, 4)) ** (1 / 3))
    assert "2 of 5 runs of A are estimates and left out of its joules" in found.caveats


def test_energy_that_is_missing_leaves_the_speed() -> None:
    """Without joules the answer says so, and goes on with what is known."""
    fast = {c: run(f"f{c}", 2.0, tokens_per_second=v) for c, v in enumerate((130.0, 131.0, 130.5))}

    found = between(configuration("aa", [None] * 3), Configuration("bb", "b", fast))

    assert answer(found).startswith("No claim about joules per output token: A has none. B makes 30")
    assert [d.better for d in found.pairs[0].differences] == [None, "b", None]


def latency(mode: str, p50_ms: float = 400.0) -> dict[str, Any]:
    """Latencies that are all alike."""
    names = ("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "min_ms", "max_ms")
    return {"latency": {"mode": mode, "samples": 9, **dict.fromkeys(names, p50_ms)}}


@pytest.mark.parametrize("lacking", ["A", "B"])
@pytest.mark.parametrize("set_beside", [inside, between], ids=["of one study", "of two"])
def test_the_joules_of_one_side_are_shown_where_the_other_has_none(
    set_beside: Callable[[Configuration, Configuration], Comparison], lacking: str
) -> None:
    """One dash, not two: what was measured stands in the table."""
    empty, full = configuration("aa", (None,) * 5), configuration("bb", B5)
    found = energy(set_beside(empty, full) if lacking == "A" else set_beside(full, empty))
    assert (found.a_mean, found.b_mean, found.ratio) == (
        (None, pytest.approx(sum(B5) / 5), None) if lacking == "A" else (pytest.approx(sum(B5) / 5), None, None)
    )


@pytest.mark.parametrize(("pretended", "says"), [("A", "A is pretended, B was measured"),
                                                 ("B", "A was measured, B is pretended")])  # fmt: skip
def test_nothing_is_claimed_between_what_is_pretended_and_what_was_measured(pretended: str, says: str) -> None:
    """No headline, no ratio, in no quantity; two pretended ones are compared as ever."""
    one, other = (configuration(n, j, synthetic=x == pretended) for n, j, x in (("aa", A5, "A"), ("bb", B5, "B")))
    found = between(one, other)

    assert answer(found) == f"No claim about joules per output token: {says}; neither says anything on the other."
    assert [(d.ratio, d.finding, d.better) for d in found.pairs[0].differences] == [(None,) * 3] * 3
    both = between(configuration("aa", A5, synthetic=True), configuration("bb", B5, synthetic=True))
    assert energy(both).better == "b"


@pytest.mark.parametrize("places", [
    ("s/runs/00000_c1_m-b_0000aaaa", "s/runs/00003_c1_m-b_0000bbbb"),
    ("s3://k/s/00000-0000aaaa-c1/a1", "s3://k/s/00003-0000bbbb-c1/a2"),
    ("s", "s/runs/00003_c1_m-b_0000bbbb"),
], ids=["two folders", "two in a bucket", "a study and its run"])  # fmt: skip
def test_two_runs_of_one_study_are_of_one_session_and_tell_apart(places: tuple[str, str]) -> None:
    """Each alone looks like the other: their names say what differs, and no second session is made up."""
    sides = []
    for uri, (digest, batch) in zip(places, (("aa", 1), ("bb", 8)), strict=True):
        config = ExperimentConfig.model_validate(
            {"model": "m", "backend": "synthetic", "synthetic": {"batch_size": batch}}
        )
        alone = replace(configuration(digest, A5[:1]), summary="synthetic bf16", config=config)
        sides.append(side(alone, uri=uri))

    found = compare(*sides)

    assert [(p.a_summary, p.b_summary) for p in found.pairs] == [("synthetic batch_size=1", "synthetic batch_size=8")]
    assert not any("different sessions" in text for text in found.caveats)
    assert found.caveats[0].startswith("of one study, but not compared within its cycles")


@pytest.mark.parametrize("set_beside", [inside, between], ids=["of one study", "of two"])
@pytest.mark.parametrize("cycles", [1, 5])
def test_latencies_of_a_batch_and_of_a_request_have_no_ratio(
    set_beside: Callable[[Configuration, Configuration], Comparison], cycles: int
) -> None:
    """A batch's time against a request's says nothing; that is told instead, and no figure stands beside another."""
    batches = configuration("aa", A5[:cycles], **latency("per_request_batch"))
    requests = configuration("bb", B5[:cycles], **latency("per_request", 1500.0))

    found = set_beside(batches, requests)

    d = found.pairs[0].differences[2]
    assert (d.quantity, d.a_runs, d.b_runs) == (LATENCY, cycles, cycles)
    assert (d.ratio, d.low, d.finding, d.better, d.a_mean, d.b_mean) == (None,) * 6
    assert (d.reason or "").startswith("latency_of_different_things: ")
    assert "no claim about latency (p50): it is not everywhere the time of the same thing" in comparison_text(found)
    alike = set_beside(requests, configuration("cc", A5[:cycles], **latency("per_request")))
    assert alike.pairs[0].differences[2].ratio == pytest.approx(400 / 1500)


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        pytest.param(side(configuration("aa", A5), configuration("bb", B5)), None, "are one study", id="nothing named"),
        pytest.param(side(configuration("aa", A5), picked=0), None, "hold the same runs", id="the same configuration"),
        pytest.param(
            side(configuration("aa", [])), side(configuration("bb", A5), uri="b"), "no run may be believed", id="no run"
        ),
    ],
)
def test_unclear_questions_are_refused(a: Side, b: Side | None, says: str) -> None:
    """What cannot be answered is said, with what may be asked."""
    with pytest.raises(StudyError, match=says):
        compare(a, b or a)


def test_command_takes_configurations_by_the_beginning_of_their_hash(
    quick_llem: Callable[..., Ended], study: Finished
) -> None:
    """A study's folder with #HASH; what is unclear lists what there is; short windows are no ground for claims."""
    rows = json.loads((study.folder / "study_manifest.json").read_bytes())["rows"]
    ok, failing = (next(r["config_hash"] for r in rows if r["status"] == s) for s in ("completed", "failed"))

    nothing = quick_llem("compare", study.folder, study.folder)
    unknown = quick_llem("compare", f"{study.folder}#ffffffffffff", study.folder)
    answered = quick_llem("compare", f"{study.folder}#{ok}", f"{study.folder}#{failing[:6]}", "--json")

    assert (nothing.code, unknown.code) == (1, 1)
    assert f"name two of its configurations with #HASH: {ok[:8]} (" in nothing.err
    assert "'ffffffffffff' is the beginning of no configuration's hash; there are" in unknown.err
    assert answered.code == 0, answered.err
    assert json.loads(answered.out)["answer"].startswith("No claim about joules per output token: ")
    assert json.loads(answered.out)["pairs"][0]["a_hash"] == ok


@pytest.mark.slow
def test_real_studies_of_known_truth_are_compared(tmp_path: Path) -> None:
    """300 W against 270 W in one study, and 330 W in another: the truth lies in each interval."""
    body: dict[str, Any] = {
        "measurement": {"min_duration_seconds": 5.2}, "synthetic": {"decode_ms_per_step": 20}, "name": "x",
        "execution": {"n_cycles": 2, "config_gap_seconds": 0, "cycle_gap_seconds": 0},
    }  # fmt: skip
    for name, watts in (("one", [300, 270]), ("two", [330])):
        write(tmp_path, body, {"sweep": {"energy.simulated.load_power_w": watts}}, name=f"{name}.yaml")
    running = [start("run", f"{name}.yaml", "-o", name, cwd=tmp_path) for name in ("one", "two")]
    ends = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], ends
    (one,), (two,) = (list((tmp_path / name).iterdir()) for name in ("one", "two"))
    stored = [ExperimentResult.from_json(p) for p in sorted(one.glob("runs/*/result.json"))]
    digests = {r.effective_config["energy"]["simulated"]["load_power_w"]: r.measurement_config_hash for r in stored}

    within = llem("compare", f"{one}#{digests[300][:8]}", f"{one}#{digests[270][:8]}", "--json", cwd=tmp_path)
    across = llem("compare", f"{one}#{digests[300][:8]}", two, "--json", cwd=tmp_path)
    text = llem("compare", one, two, cwd=tmp_path)

    assert (within.code, across.code, text.code) == (0, 0, 0), within.err + across.err + text.err
    for ended, truth, method in ((within, 0.9, "within_cycles"), (across, 1.1, "different_sessions")):
        found = energy(Comparison.model_validate(json.loads(ended.out)))
        assert found.method == method
        assert found.low is not None
        assert found.high is not None
        assert found.low <= truth <= found.high
    assert text.out.startswith("B needs ")
    assert "Compared: the best of each side." in text.out
