"""The probes of a phase split: what is run, that it lies outside the window, what a counter makes of it, refusals."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from llenergymeasure import phase_split
from llenergymeasure.core import registry
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import (
    Device,
    DeviceEnergy,
    EnergyRecord,
    Generation,
    ModelFacts,
    Request,
    SensorFacts,
    Weights,
    Window,
)
from llenergymeasure.core.energy_series import EnergySeries, Tick
from llenergymeasure.core.phase_split import LAG_S, PhaseSplit
from llenergymeasure.measure import Measured
from llenergymeasure.phases import Phases, silent
from llenergymeasure.report import single
from llenergymeasure.run_energy import RunEnergy
from llenergymeasure.user_config import cache_dir

Config = Callable[..., ExperimentConfig]
UUID = "GPU-a"
IDLE_W, PREFILL_W, DECODE_W = 110.0, 600.0, 350.0


@dataclass
class Clock:
    """A clock that moves only when somebody sleeps."""

    now_s: float = 500.0

    def monotonic(self) -> float:
        """Now, s."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


@dataclass
class Watched:
    """A counter and the engine that it watches: it knows from the engine's script what was drawn when."""

    engine: Any
    clock: Clock
    seen: list[Generation] = field(default_factory=list)
    windows: dict[str, list[float]] = field(default_factory=dict)
    NAME = "watched"
    KIND = "counter"

    def generate_timed(self, batch: Sequence[Request]) -> Generation:
        """Run a batch, remember when."""
        self.seen.append(self.engine.generate(batch))
        self.clock.sleep(0.003)  # the host makes the next batch
        return self.seen[-1]

    def open_window(self, name: str) -> float:
        """Mark a start."""
        self.windows[name] = [self.clock.now_s]
        return self.clock.now_s

    def close_window(self, name: str, edges: str = "loaded") -> float:
        """Mark an end."""
        del edges
        self.windows[name].append(self.clock.now_s)
        return self.clock.now_s

    def joules(self, start_s: float, end_s: float) -> float:
        """What the batches drew between two instants above idle, and idle."""
        parts = [IDLE_W * (end_s - start_s)]
        for g in self.seen:
            assert g.first_token_s is not None
            for a, b, watts in ((g.start_s, g.first_token_s, PREFILL_W), (g.first_token_s, g.end_s, DECODE_W)):
                parts.append((watts - IDLE_W) * max(0.0, min(b, end_s) - max(a, start_s)))
        return math.fsum(parts)

    def record(
        self,
        *,
        power_before_w: float | None = IDLE_W,
        edges: Any = "quiet",
        lag_s: float = LAG_S,
        told: tuple[float | None, str | None] | None = None,
    ) -> EnergyRecord:
        """Ticks every 100 ms that lag, the window's true energy, and what a self-test told of the lag (s, or why not)."""
        start_s, end_s = self.windows["window"]
        times = [490 + k / 10 for k in range(int(10 * (self.clock.now_s - 488)))]
        ticks = tuple(Tick(t, t, self.joules(480, t - lag_s)) for t in times)
        known = DeviceEnergy(
            UUID, self.joules(start_s, end_s), 1.0, edges=edges, power_before_w=power_before_w, power_after_w=IDLE_W
        )
        facts = (
            SensorFacts(0.1, 0.001, 0.004, "default", told[0], 0.007, 0.004, len(ticks), 0.02, True, told[1])
            if told
            else None
        )
        return EnergyRecord(
            {"window": (known,)}, series={UUID: EnergySeries(ticks)}, sensors={UUID: facts} if facts else {}
        )


SCRIPT = {"batch_size": 4, "batch_overhead_ms": 2.0, "prefill_ms_per_token": 0.1, "decode_ms_per_step": 20.0}


@dataclass
class Story:
    """A main window and its probes on a clock of their own."""

    watched: Watched
    config: ExperimentConfig
    main: list[Generation]
    probes: phase_split.Probes
    progress: list[dict[str, Any]]

    @property
    def window(self) -> Window:
        """The main window."""
        return Window("window", *self.watched.windows["window"])


@pytest.fixture
def story(config: Config, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Story]:
    """Play a main window of 30 s and the probes after it."""

    def play(*, input_len: int = 200, output_len: int = 30, context_length: int | None = None) -> Story:
        clock = Clock()
        monkeypatch.setattr("llenergymeasure.backends.synthetic.time", clock)
        monkeypatch.setattr("llenergymeasure.phase_split.time", clock)
        chosen = config(synthetic=SCRIPT, decoder={"decoding_strategy": "greedy"})
        engine = registry.engine("synthetic")
        engine.load(chosen, Weights("pretended", cache_dir(), "none"))
        requests = [Request(i, tuple(range(input_len)), output_len) for i in range(8)]
        batches = engine.batches(requests)
        watched = Watched(engine, clock)
        watched.open_window("window")
        while clock.now_s < 530:
            watched.generate_timed(batches[0])
        watched.close_window("window")
        main = list(watched.seen)
        clock.sleep(2)
        told: list[dict[str, Any]] = []
        energy = RunEnergy(watched, "", (Device(0, UUID),))  # type: ignore[arg-type]  # the part that probes use
        facts = ModelFacts(None, None, context_length=context_length)
        probes = phase_split.probe(chosen, watched, energy, batches, facts, Phases(told.append))  # type: ignore[arg-type]
        return Story(watched, chosen, main, probes, told)

    return play


def test_the_scripts_powers_come_back(story: Callable[..., Story]) -> None:
    """600 W in prefill, 350 W in decode, 110 W waiting: joules per token by hand, the window predicted."""
    played = story()
    found = phase_split.judge(played.probes, played.window, played.main, played.watched.record())
    prefill_s, step_s = (2.0 + 0.1 * 4 * 200 + 20) / 1e3, 0.020
    assert found.reason is None
    assert found.energy_per_prefill_token_j == pytest.approx((PREFILL_W - IDLE_W) * prefill_s / (4 * 200), rel=0.01)
    assert found.energy_per_decode_token_j == pytest.approx((DECODE_W - IDLE_W) * step_s / 4, rel=0.01)
    assert found.closure == pytest.approx(0.0, abs=0.01)
    assert (found.idle_power_w, found.concurrency, found.lag_s) == (IDLE_W, 4, 0.012)
    assert found.decode_context == pytest.approx(200 + 30 / 2)


@pytest.mark.parametrize(
    ("told", "lag_s", "reason"),
    [
        pytest.param((0.045, None), 0.045, None, id="self-test"),
        pytest.param((None, "too uncertain"), LAG_S, f"{UUID}: too uncertain", id="self-test could not tell"),
        pytest.param(None, LAG_S, f"{UUID}: the source tells nothing of its counter", id="another source"),
    ],
)
def test_ticks_are_shifted_by_the_lag_that_a_self_test_found(
    told: tuple[float | None, str | None] | None, lag_s: float, reason: str | None, story: Callable[..., Story]
) -> None:
    """A counter that is 45 ms late gives the script's powers where that is known; else 12 ms are assumed, with why."""
    played = story()
    record = played.watched.record(lag_s=0.045, told=told)
    found = phase_split.judge(played.probes, played.window, played.main, record)
    assert (found.lag_s, found.lag_reason) == (lag_s, reason)
    if reason is None:
        assert found.closure == pytest.approx(0.0, abs=0.01)
        prefill_s = (2.0 + 0.1 * 4 * 200 + 20) / 1e3
        assert found.energy_per_prefill_token_j == pytest.approx((PREFILL_W - IDLE_W) * prefill_s / (4 * 200), rel=0.01)


def test_several_gpus_share_the_mean_of_their_lags_if_all_are_known() -> None:
    """One GPU whose lag is unknown sends all of them back to the documented one."""

    def record(*told: tuple[float | None, str | None]) -> tuple[EnergyRecord, list[DeviceEnergy]]:
        facts = {
            f"GPU-{i}": SensorFacts(0.1, 0.001, 0.004, "default", t[0], 0.007, 0.004, 100, 0.02, True, t[1])
            for i, t in enumerate(told)
        }
        return EnergyRecord({}, sensors=facts), [DeviceEnergy(u, 1.0) for u in facts]

    assert phase_split._lag(*record((0.010, None), (0.016, None))) == (pytest.approx(0.013), None)
    assert phase_split._lag(*record((0.010, None), (None, "why"))) == (LAG_S, "GPU-1: why")


def test_probes_are_prefill_decode_and_a_long_context(story: Callable[..., Story]) -> None:
    """At the window's batch size: one output token; 8 prompt tokens; half the output; each 10 s or more, after it."""
    played = story()
    assert [s.name for s in played.probes.segments] == ["prefill", "decode", "context"]
    assert [e["done"] for e in played.progress] == [0, 1, 2]
    shapes = {
        s.name: {
            (len(g.requests), len(g.requests[0].token_ids), len(g.output_token_ids[0]))
            for g in played.watched.seen
            if s.start_s <= g.start_s < s.end_s
        }
        for s in played.probes.segments
    }
    assert shapes == {"prefill": {(4, 200, 1)}, "decode": {(4, 8, 30)}, "context": {(4, 200, 15)}}
    for segment in played.probes.segments:
        assert segment.start_s > played.window.end_s
        assert segment.end_s - segment.start_s >= 10


def test_short_contexts_need_no_third_probe(story: Callable[..., Story]) -> None:
    """A window whose context is that of the short prompts has nothing more to probe; outputs are at least 16 tokens."""
    played = story(input_len=8, output_len=4)
    assert [s.name for s in played.probes.segments] == ["prefill", "decode"]
    assert {len(g.output_token_ids[0]) for g in played.watched.seen} == {4, 1, 16}


def test_probes_fit_into_the_models_context(story: Callable[..., Story]) -> None:
    """Lengthened outputs stop where the model's context ends."""
    played = story(input_len=8, output_len=4, context_length=14)
    assert max(len(g.requests[0].token_ids) + len(g.output_token_ids[0]) for g in played.watched.seen) == 14


@pytest.mark.parametrize(
    ("record", "said"),
    [
        pytest.param({"edges": "interpolated"}, "loaded and waiting is unknown", id="guards were not quiet"),
        pytest.param(None, "no energy was recorded", id="no energy"),
    ],
)
def test_without_a_measured_idle_there_is_no_split(
    record: dict[str, Any] | None, said: str, story: Callable[..., Story]
) -> None:
    """The loaded idle is never fitted: where the guards were not quiet, no figure is given."""
    played = story()
    recorded = None if record is None else played.watched.record(**record)
    found = phase_split.judge(played.probes, played.window, played.main, recorded)
    assert found.energy_per_prefill_token_j is None
    assert said in (found.reason or "")


class Untimed:
    """An engine that cannot tell."""


@dataclass
class Estimate:
    """A source that estimates."""

    NAME = "codecarbon"
    KIND = "estimate"


@pytest.mark.parametrize(
    ("source", "engine", "decoding", "said"),
    [
        pytest.param(None, Untimed(), "greedy", "energy.backend is none", id="no source"),
        pytest.param(Estimate(), Untimed(), "greedy", "codecarbon estimates power", id="an estimate"),
        pytest.param(Watched(None, Clock()), Untimed(), "greedy", "does not tell when", id="engine cannot"),
        pytest.param(Watched(None, Clock()), Watched(None, Clock()), "beam", "beam search", id="beam search"),
    ],
)
def test_what_cannot_be_probed_is_not_run(source: Any, engine: Any, decoding: str, said: str, config: Config) -> None:
    """No work is done where it would tell nothing, and the reason is kept."""
    energy = RunEnergy(source, "energy.backend is none", (Device(0, UUID),))
    chosen = config(decoder={"decoding_strategy": decoding, "num_beams": 2 if decoding == "beam" else None})
    found = phase_split.probe(chosen, engine, energy, [(Request(0, (1,), 2),)], ModelFacts(None, None), Phases(silent))
    assert found.segments == ()
    assert said in (found.reason or "")


def test_a_run_says_why_it_has_no_split(run: Callable[..., Measured]) -> None:
    """Asked for without energy: null, the code among the warnings. Not asked for: nothing at all."""
    asked = run(energy={"backend": "none"}, measurement={"phase_split": True}).result
    assert asked.phase_split is not None
    assert asked.phase_split.energy_per_prefill_token_j is None
    assert any(w.startswith("phase_split_unidentified: ") for w in asked.measurement_warnings)
    assert asked.phases["window"].end_s <= asked.phases["probes"].start_s
    plain = run().result
    assert plain.phase_split is None
    assert "probes" not in plain.phases


def test_the_summary_shows_the_split_where_there_is_one(run: Callable[..., Measured]) -> None:
    """Joules of both phases with what they hold for, the shares and the closure; nothing where it is unknown."""
    result = run().result
    known = PhaseSplit(
        energy_per_prefill_token_j=0.0123,
        energy_per_decode_token_j=0.456,
        idle_share=0.2,
        prefill_share=0.3,
        decode_share=0.5,
        closure=-0.012,
        concurrency=4,
        decode_context=215.0,
    )
    told = single(result.model_copy(update={"phase_split": known}))
    assert re.search(r"J/prefilled token +0\.0123  \(above loaded idle\)", told)
    assert "0.456  (likewise, at 4 in a batch and a context of 215 tokens)" in told
    assert "waiting 20 %, prefill 30 %, decode 50 %; predicts the window within 1.2 %" in told
    unknown = PhaseSplit(reason="phase_split_unidentified: why")
    assert single(result.model_copy(update={"phase_split": unknown})) == single(result)
