"""An experiment's phases and its window: all there, in order, and nothing in the window but the work."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from llenergymeasure import window
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Generation, Request
from llenergymeasure.measure import Measured
from llenergymeasure.phases import PHASES, Phases, silent
from llenergymeasure.recording import from_json

Run = Callable[..., Measured]


def test_every_phase_is_recorded_in_order(run: Run) -> None:
    """All phases have a start and an end, none overlaps the next, and all lie within the run's wall time."""
    begin_s = time.monotonic()
    phases = run().result.phases
    wall_s = time.monotonic() - begin_s
    assert tuple(phases) == PHASES
    edges = [t for p in phases.values() for t in (p.start_s, p.end_s)]
    assert edges == sorted(edges)
    assert edges[0] >= 0
    assert edges[-1] <= wall_s


@pytest.mark.parametrize("probes", [False, True], ids=["plain", "with probes"])
def test_progress_names_the_phases_as_they_begin(probes: bool, run: Run) -> None:
    """The listener hears every phase once, with how many are done of how many; probes are one more, after the window."""
    events: list[dict[str, Any]] = []
    run(emit=events.append, energy={"backend": "none"}, measurement={"phase_split": probes})
    heard = [e for e in events if e["event"] == "phase"]
    expected = list(PHASES)
    if probes:
        expected.insert(expected.index("window") + 1, "probes")
    assert [e["phase"] for e in heard] == expected
    assert [e["done"] for e in heard] == list(range(len(expected)))
    assert {e["total"] for e in heard} == {len(expected)}
    assert [e["t_s"] for e in heard] == sorted(e["t_s"] for e in heard)


def test_the_window_holds_the_work_and_nothing_else(run: Run) -> None:
    """Load, tokenising, warm-up and settling end before the window begins; draining and the result come after."""
    result = run(synthetic={"batch_overhead_ms": 20}).result
    assert result.steady_state_window is not None
    start_s, end_s = result.steady_state_window
    phases = result.phases
    assert max(phases[p].end_s for p in ("load", "tokenise", "warmup", "settle")) <= start_s
    assert phases["window"].start_s <= start_s < end_s <= phases["window"].end_s
    assert end_s <= min(phases[p].start_s for p in ("drain", "result"))
    assert result.duration_s == pytest.approx(end_s - start_s)


def test_warm_up_work_is_not_counted(run: Run) -> None:
    """Tokens and requests are the window's, however much was done before."""
    few, many = (run(warmup={"n_warmup": n}).result for n in (1, 9))
    for result in (few, many):
        assert (result.requests, result.input_tokens, result.output_tokens) == (3, 24, 12)
        assert result.total_tokens == 36
    assert (few.warmup_excluded_samples, many.warmup_excluded_samples) == (1, 9)


def test_rates_are_the_windows_tokens_over_its_length(run: Run) -> None:
    """One denominator: the window; output tokens, all tokens and requests per second follow by hand."""
    result = run(n=5, synthetic={"batch_size": 2}).result
    assert result.requests == 6  # three full batches, the list read in a circle
    assert result.request_output_tokens == [4] * 6
    assert result.request_input_tokens == [8] * 6
    assert result.tokens_per_second == pytest.approx(24 / result.duration_s)
    assert result.total_tokens_per_second == pytest.approx(72 / result.duration_s)
    assert result.requests_per_second == pytest.approx(6 / result.duration_s)
    assert result.latency is not None
    assert (result.latency.samples, result.latency.mode) == (3, "per_request_batch")


@pytest.mark.parametrize(
    ("seconds", "least"),
    [pytest.param(0.25, 0.25, id="longer than a pass"), pytest.param(0.01, 0.06, id="shorter than a pass")],
)
def test_the_least_duration_is_respected_in_whole_batches(seconds: float, least: float, run: Run) -> None:
    """Work goes round the prompts until the time is reached; at least one pass, never a part of a batch."""
    result = run(
        n=6,
        measurement={"min_duration_seconds": seconds},
        synthetic={"batch_size": 2, "batch_overhead_ms": 20, "prefill_ms_per_token": 0, "decode_ms_per_step": 0},
    ).result
    assert result.duration_s >= least
    assert result.requests >= 6
    assert result.requests % 2 == 0


@pytest.mark.parametrize(
    ("energy", "passes"),
    [pytest.param("none", 1, id="without a source: one pass"), pytest.param("simulated", 2, id="with one: longer")],
)
def test_an_unset_duration_depends_on_the_source(
    energy: str, passes: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unset means one pass where there are no joules to measure, and the default window where there are."""
    assert window.DEFAULT_WINDOW_S == 60.0
    monkeypatch.setattr(window, "DEFAULT_WINDOW_S", 2.0)  # so long that a pass of 60 ms that stalls is not enough
    result = run(
        energy={"backend": energy},
        measurement={"min_duration_seconds": None},
        synthetic={"batch_overhead_ms": 20, "prefill_ms_per_token": 0, "decode_ms_per_step": 0},
    ).result
    assert (result.requests > 3) is (passes > 1)
    assert result.duration_s >= (2.0 if passes > 1 else 0.06)


def test_zero_seconds_is_exactly_one_pass(run: Run) -> None:
    """0 is not unset: one pass, also with a source."""
    assert run(n=4, measurement={"min_duration_seconds": 0}).result.requests == 4


def test_a_records_output_length_beats_the_general_one(run: Run, tmp_path: Any) -> None:
    """max_new_tokens of a record wins over max_output_tokens; the others keep the general one."""
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a b c", "max_new_tokens": 2}\n{"prompt": "d"}\n{"prompt": "e", "max_new_tokens": 9}\n')
    result = run(dataset=str(path), max_output_tokens=5).result
    assert result.request_output_tokens == [2, 5, 9]
    assert result.request_input_tokens == [3, 1, 1]


def test_text_is_kept_only_when_asked_for(run: Run, tmp_path: Any) -> None:
    """save_text keeps each prompt of the first pass with its output, once; otherwise there is none."""
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    fields = {"dataset": str(path), "max_output_tokens": 2, "measurement": {"min_duration_seconds": 0.1}}
    assert run(**fields).result.texts is None
    texts = run(**fields, output={"save_text": True}, synthetic={"batch_size": 2}).result.texts
    assert texts is not None
    assert [(t.request, t.prompt) for t in texts] == [(0, "a"), (1, "b"), (2, "c")]
    assert len({t.output for t in texts}) == 3
    assert all(t.output.count("<") == 2 for t in texts)


def test_raw_samples_are_kept_only_when_asked_for(run: Run) -> None:
    """raw_samples is the recording in seconds from window start; its ticks and readings cover the window."""
    assert run().raw is None
    measured = run(output={"raw_samples": True}, measurement={"min_duration_seconds": 0.3})
    assert measured.raw is not None
    recorded = from_json(json.loads(json.dumps(measured.raw)))
    (series,) = recorded.series.values()
    times = [t.after_s for t in series.ticks]
    assert min(times) < 0
    assert max(times) > measured.raw["window_s"] == pytest.approx(measured.result.duration_s)
    assert [t.joules for t in series.ticks] == sorted(t.joules for t in series.ticks)
    assert any(0 <= r.t_s <= 0.3 for r in recorded.readings)


def test_equal_configurations_produce_equal_work(run: Run) -> None:
    """Two runs have the same hash, dataset sum, tokens and text, and different ids."""
    fields = {"output": {"save_text": True}}
    first, second = run(**fields).result, run(**fields).result
    for name in ("measurement_config_hash", "dataset_sha256", "request_output_tokens", "texts", "effective_config"):
        assert getattr(first, name) == getattr(second, name)
    assert first.experiment_id != second.experiment_id


def test_the_seed_is_set_again_before_the_window(run: Run) -> None:
    """How long the warm-up was does not change what is generated in the window; the seed does."""

    def texts(**fields: Any) -> Any:
        return run(output={"save_text": True}, **fields).result.texts

    assert texts(warmup={"n_warmup": 1}) == texts(warmup={"n_warmup": 6})
    assert texts() != texts(random_seed=1)


def test_a_crashing_engine_ends_the_run(run: Run) -> None:
    """What the engine raises in the window comes out, and no half result."""
    from llenergymeasure.core.errors import BackendError

    with pytest.raises(BackendError, match="after 2 batches"):
        run(synthetic={"fail_after_batches": 2})


def test_times_are_utc_and_enclose_the_run(run: Run) -> None:
    """Start and end carry a UTC offset and are as far apart as the phases say."""
    from datetime import UTC, datetime

    before = datetime.now(UTC)
    result = run().result
    after = datetime.now(UTC)
    assert before <= result.start_time < result.end_time <= after
    assert result.start_time.utcoffset() == result.end_time.utcoffset() == before.utcoffset()


def test_the_method_is_recorded(run: Run) -> None:
    """A finished warm-up makes a steady state; the window's kind and the treatment of end tokens stand beside it."""
    result = run().result
    assert (result.measurement_methodology, result.window_mode, result.ignore_eos) == ("steady_state", "passes", True)


def test_where_each_value_came_from_is_recorded(run: Run) -> None:
    """What the user wrote is marked as set, what nobody wrote as default."""
    provenance = run(n=2, synthetic={"batch_size": 2}).result.parameter_provenance
    assert provenance["n"] == provenance["synthetic.batch_size"] == "set"
    assert provenance["max_output_tokens"] == provenance["synthetic.decode_ms_per_step"] == "default"


@dataclass
class Quiet:
    """An engine, a clock and an energy source in one: what happens is noted with its instant."""

    now_s: float = 100.0
    guard_s: float = 1.5
    story: list[tuple[str, float]] = field(default_factory=list)
    CLOCK_BOOTTIME = CLOCK_MONOTONIC = 0
    source = None

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def clock_gettime(self, _clock: int) -> float:
        return self.now_s

    def _note(self, what: str) -> float:
        self.story.append((what, self.now_s))
        return self.now_s

    def note_processes(self) -> None:
        self._note("processes")

    def attend(self) -> None:
        self._note("attend")

    def open(self, name: str) -> float:
        return self._note(f"open {name}")

    def close(self, name: str, edges: str) -> float:
        return self._note(f"close {name} {edges}")

    def generate(self, batch: Sequence[Request]) -> Generation:
        self._note("work")
        self.now_s += 2.0
        return Generation(tuple(batch), tuple((1,) for _ in batch), self.now_s - 2.0, self.now_s)


def test_the_engine_waits_on_both_sides_of_the_window(
    config: Callable[..., ExperimentConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard, window, guard: nothing works in between, every tick is asked for near both edges, processes are noted."""
    quiet: Any = Quiet()
    monkeypatch.setattr(window, "time", quiet)
    batches = [(Request(0, (1,), 1),), (Request(1, (1,), 1),)]
    spec = config(measurement={"min_duration_seconds": 9})
    fed = window.passes(spec, quiet, quiet, batches, Phases(silent))
    assert quiet.story == [
        ("processes", 100.0),
        ("attend", 100.0),
        ("open window", 101.5),
        *[("work", 101.5 + 2 * i) for i in range(3)],
        ("attend", 107.5),  # 3 s are left: with batches of 2 s the next but one may be the last
        *[("work", 107.5 + 2 * i) for i in range(2)],
        ("close window quiet", 111.5),
        ("processes", 113.0),
    ]
    assert (fed.window.start_s, fed.window.end_s, len(fed.generations)) == (101.5, 111.5, 5)
    assert (fed.work.mode, fed.work.edges, fed.work.itl_s, fed.suspended_s) == ("passes", "quiet", None, 0.0)


@pytest.mark.parametrize(("slept_s", "refused"), [(0.0, False), (0.4, False), (7.0, True)])
def test_a_window_in_which_the_host_slept_is_invalid(
    slept_s: float, refused: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time that passes for the machine but not for its clock makes the window worthless."""
    told = iter([3.0, 3.0 + slept_s])
    monkeypatch.setattr(window, "asleep_s", lambda: next(told))
    codes = [r.code for r in run(measurement={"min_duration_seconds": 0.3}).result.verdict.reasons]
    assert ("suspended" in codes) is refused


def test_the_hosts_sleep_is_read_from_its_clocks() -> None:
    """Differences count; a host that is awake adds nothing."""
    assert window.asleep_s() == pytest.approx(window.asleep_s(), abs=0.01)


def test_how_it_settled_is_in_the_result(run: Run) -> None:
    """Also that nothing was waited for, and why."""
    settle = run().result.settle
    assert settle is not None
    assert (settle.settled, settle.seconds, settle.reason) == (None, 0.0, "no GPU")
