"""Warm-up and settling: how many passes, when they have converged, what is reported, and when it is skipped."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from llenergymeasure import warmup
from llenergymeasure.backends import synthetic
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Generation, Request
from llenergymeasure.core.result import WarmupResult
from llenergymeasure.measure import Measured

SHORT, LONG = Request(0, (1, 2), 50), Request(1, tuple(range(9)), 50)
BATCHES = [(SHORT, SHORT), (SHORT, LONG)]
Config = Callable[..., ExperimentConfig]


@dataclass
class Scripted:
    """An engine whose batches take the times of a script, on a clock that it moves itself."""

    latencies_s: Sequence[float]
    now_s: float = 0.0
    seen: list[tuple[Request, ...]] = field(default_factory=list)

    def generate(self, batch: Sequence[Request]) -> Generation:
        length_s = self.latencies_s[min(len(self.seen), len(self.latencies_s) - 1)]
        self.seen.append(tuple(batch))
        start_s, self.now_s = self.now_s, self.now_s + length_s
        return Generation(tuple(batch), tuple((1,) for _ in batch), start_s, self.now_s)

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def _warm(config: ExperimentConfig, engine: Scripted) -> WarmupResult:
    found = warmup.warm_up(config, engine, BATCHES, lambda *_: None)
    assert found is not None
    return found


def test_the_result_has_exactly_six_fields() -> None:
    """converged, final_cv, iterations_completed, target_cv, max_prompts, latencies_ms, and nothing else."""
    assert set(WarmupResult.model_fields) == {
        "converged",
        "final_cv",
        "iterations_completed",
        "target_cv",
        "max_prompts",
        "latencies_ms",
    }


def test_without_detection_exactly_n_passes_are_made(config: Config) -> None:
    """n_warmup passes, their latencies in ms, and a coefficient of variation of the last window."""
    engine = Scripted([0.5, 0.2, 0.1, 0.1, 0.1, 0.1, 0.12])
    found = _warm(config(warmup={"n_warmup": 7, "window_size": 5}), engine)
    assert found.latencies_ms == pytest.approx([500, 200, 100, 100, 100, 100, 120])
    assert found.iterations_completed == len(engine.seen) == 7
    assert found.converged is None
    last = [100, 100, 100, 100, 120]
    assert found.final_cv == pytest.approx(float(np.std(last, ddof=1) / np.mean(last)))


def test_fewer_passes_than_the_window_have_no_variation_to_report(config: Config) -> None:
    """With fewer latencies than the window size the coefficient is unknown, not zero."""
    found = _warm(config(warmup={"n_warmup": 2, "window_size": 5}), Scripted([0.1]))
    assert (found.final_cv, found.converged) == (None, None)


@pytest.mark.parametrize(
    ("latencies", "passes", "converged"),
    [
        pytest.param([0.1], 5, True, id="steady from the start: not before n_warmup"),
        pytest.param([1, 2, 1, 2, 1, 2, 1, 0.1, 0.1, 0.1], 10, True, id="goes on until it is steady"),
        pytest.param([0.1, 0.3], None, True, id="steady after one slow step"),
        pytest.param(list(itertools.islice(itertools.cycle([0.1, 0.3]), 40)), 20, False, id="never: max_prompts"),
    ],
)
def test_detection_goes_on_until_the_latencies_agree(
    latencies: list[float], passes: int | None, converged: bool, config: Config
) -> None:
    """Past n_warmup until the variation of the last window is below the threshold, at most max_prompts."""
    settings = {"n_warmup": 5, "convergence_detection": True, "window_size": 3, "cv_threshold": 0.05, "max_prompts": 20}
    found = _warm(config(warmup=settings), Scripted(latencies))
    assert found.converged is converged
    assert found.iterations_completed == (passes or 5)
    assert (found.target_cv, found.max_prompts) == (0.05, 20)
    assert found.final_cv is not None
    assert (found.final_cv < 0.05) is converged


def test_the_longest_prompts_are_used_with_short_outputs(config: Config) -> None:
    """The batch that needs most memory warms up, with the warm-up's own output length, never more than asked."""
    engine = Scripted([0.1])
    _warm(config(warmup={"n_warmup": 1, "max_output_tokens": 32}), engine)
    assert engine.seen == [tuple(Request(r.index, r.token_ids, 32) for r in BATCHES[1])]
    engine = Scripted([0.1])
    _warm(config(warmup={"n_warmup": 1, "max_output_tokens": 99}), engine)
    assert engine.seen == [BATCHES[1]]


def test_without_detection_a_result_does_not_say_that_it_converged(run: Callable[..., Measured]) -> None:
    """Nothing was tested: null with the reason, no warning, and the window counts as steady as ever."""
    result = run(warmup={"n_warmup": 2}).result
    assert result.warmup is not None
    assert result.warmup.converged is None
    assert result.null_reasons["warmup.converged"].startswith("warmup.convergence_detection is false: ")
    assert result.measurement_methodology == "steady_state"
    assert not any(w.startswith("warmup_not_converged") for w in result.measurement_warnings)


def test_with_detection_a_result_says_that_it_converged(run: Callable[..., Measured]) -> None:
    """Tested and met: true, and no reason beside it."""
    settings = {"n_warmup": 5, "convergence_detection": True, "window_size": 3, "cv_threshold": 0.5}
    result = run(warmup=settings, synthetic={"batch_overhead_ms": 5}).result
    assert result.warmup is not None
    assert result.warmup.converged is True
    assert "warmup.converged" not in result.null_reasons


def test_a_warm_up_that_is_off_makes_the_method_total(run: Callable[..., Measured]) -> None:
    """No warm-up, no steady state: nothing excluded, no window named as steady."""
    result = run(warmup={"enabled": False}).result
    assert result.measurement_methodology == "total"
    assert (result.warmup, result.steady_state_window, result.warmup_excluded_samples) == (None, None, 0)
    assert result.requests == 3


class Wobbling(synthetic.Engine):
    """The pretended engine, every other batch three times as slow."""

    def generate(self, batch: Sequence[Request]) -> Generation:
        """Repeat the work before an even batch."""
        self.count = getattr(self, "count", 0) + 1
        if self.count % 2:
            return super().generate(batch)
        first = super().generate(batch)
        super().generate(batch)
        last = super().generate(batch)
        return Generation(first.requests, first.output_token_ids, first.start_s, last.end_s)


def test_a_warm_up_that_does_not_converge_is_reported(
    run: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on with methodology total, converged false and a warning that names the fix."""
    monkeypatch.setattr(synthetic, "Engine", Wobbling)
    result = run(
        synthetic={"batch_overhead_ms": 5},
        warmup={"n_warmup": 3, "convergence_detection": True, "window_size": 4, "max_prompts": 8},
    ).result
    assert result.warmup is not None
    assert not result.warmup.converged
    assert result.warmup.iterations_completed == result.warmup_excluded_samples == 8
    assert (result.measurement_methodology, result.steady_state_window) == ("total", None)
    (warning,) = [w for w in result.measurement_warnings if w.startswith("warmup_not_converged:")]
    assert "warmup.max_prompts" in warning


@dataclass
class Power:
    """A source whose mean power follows a function of the interval."""

    of: Callable[[float, float], float | None]

    def mean_power_w(self, start_s: float, end_s: float) -> float | None:
        return self.of(start_s, end_s)


def _settle(
    config: ExperimentConfig,
    monkeypatch: pytest.MonkeyPatch,
    power: Power | None,
    warmth: Callable[[], dict[str, float]] | None = None,
    engine: Scripted | None = None,
) -> tuple[warmup.Settling, Scripted]:
    engine = engine or Scripted([1.0])
    monkeypatch.setattr(warmup, "time", engine)
    following = itertools.cycle(BATCHES)
    found = warmup.settle(config, lambda: engine.generate(next(following)), power, warmth or dict)
    return found, engine


STEADY = Power(lambda _a, _b: 400.0)
RISING = Power(lambda _a, b: 400.0 + 10 * b)
SILENT = Power(lambda _a, _b: None)


def test_settling_under_load_takes_at_least_twenty_seconds(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steady power ends it after 20 s of the measured work itself, read in a circle, without a warning."""
    found, engine = _settle(config(), monkeypatch, STEADY)
    assert found.warnings == ()
    assert found.record.model_dump() == {
        "settled": True,
        "seconds": 20.0,
        "power_drift": 0.0,
        "temperature_change_c": None,
        "reason": "power and temperature were level",
    }
    assert engine.now_s == 20.0
    assert engine.seen[:3] == [BATCHES[0], BATCHES[1], BATCHES[0]]


def test_settling_waits_for_power_to_level_off(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power that rises until 35 s and is flat afterwards settles when both halves of 20 s agree within 0.5 %."""
    power = Power(lambda a, b: 400.0 + 10 * min(35.0, (a + b) / 2))
    found, engine = _settle(config(), monkeypatch, power)
    assert found.warnings == ()
    assert 45 <= engine.now_s <= 56
    assert found.record.seconds == engine.now_s


def test_settling_waits_for_the_temperature(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power is level, but one of two GPUs warms by 0.2 °C/s until 30 s: it goes on until 20 s hold 2 °C or less."""
    engine = Scripted([1.0])
    found, _ = _settle(
        config(), monkeypatch, STEADY, lambda: {"a": 50.0, "b": 40 + 0.2 * min(30.0, engine.now_s)}, engine
    )
    assert found.record.settled
    assert engine.now_s == 40.0
    assert found.record.temperature_change_c == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("power", "said", "drift"),
    [(RISING, "power moved by +14.4 %", 0.1439), (SILENT, "could not be read", None)],
    ids=["rising", "no reading"],
)
def test_what_does_not_settle_stops_at_the_floor(
    power: Power, said: str, drift: float | None, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most thermal_floor_seconds, then a warning with the fix; the record says how far it was."""
    found, engine = _settle(config(warmup={"thermal_floor_seconds": 40}), monkeypatch, power, lambda: {"a": 61.0})
    (warning,) = found.warnings
    assert engine.now_s == 40.0
    assert warning.startswith("not_settled:")
    assert said in warning
    assert "temperature by 0 °C" in warning
    assert "warmup.thermal_floor_seconds" in warning
    assert (found.record.settled, found.record.seconds) == (False, 40.0)
    assert found.record.power_drift == pytest.approx(drift, abs=5e-4) if drift else found.record.power_drift is None


def test_a_fixed_wait_is_idle_and_exact(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fixed` waits the floor without running anything."""
    fields = {"thermal_wait": "fixed", "thermal_floor_seconds": 30}
    found, engine = _settle(config(warmup=fields), monkeypatch, STEADY)
    assert (found.warnings, engine.now_s, engine.seen) == ((), 30.0, [])
    assert (found.record.settled, found.record.seconds) == (None, 30.0)


def test_no_floor_is_a_recorded_warning(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 on a GPU skips settling and says so."""
    found, engine = _settle(config(warmup={"thermal_floor_seconds": 0}), monkeypatch, STEADY)
    assert [w.partition(":")[0] for w in found.warnings] == ["no_settling"]
    assert engine.seen == []


@pytest.mark.parametrize(
    ("fields", "power", "reason"),
    [
        pytest.param({}, None, "no GPU", id="no GPU"),
        pytest.param({"enabled": False}, STEADY, "warmup.enabled is false", id="no warm-up"),
    ],
)
def test_settling_is_skipped(
    fields: dict[str, Any], power: Power | None, reason: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU, or without a warm-up, there is nothing to settle and nothing to warn about."""
    found, engine = _settle(config(warmup=fields), monkeypatch, power)
    assert (found.warnings, engine.seen, engine.now_s) == ((), [], 0.0)
    assert (found.record.settled, found.record.reason) == (None, reason)


def test_a_variation_is_a_sample_standard_deviation(config: Config) -> None:
    """The coefficient divides by n-1, as for a sample; a window of three shows the difference."""
    found = _warm(config(warmup={"n_warmup": 3, "window_size": 3}), Scripted([1.0, 2.0, 3.0]))
    assert found.final_cv == pytest.approx(1.0 / 2.0)
    assert found.final_cv != pytest.approx(math.sqrt(2 / 3) / 2)
