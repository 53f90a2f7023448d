"""The split by phases against a generator of ticks that knows what each phase drew."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from llenergymeasure.core.energy_series import EnergySeries, Tick
from llenergymeasure.core.phase_split import Board, Mix, PhaseSplit, Segment, Span, split

IDLE_W, PREFILL_W, DECODE_W = 120.0, 650.0, 380.0
ROWS, PROMPT, OUTPUT = 8, 256, 64
PREFILL_S_PER_TOKEN = 40e-6
STEP_S = 0.025
LAG_S = 0.012


@dataclass
class World:
    """A GPU that draws known powers; the truth about its energy is summed piece by piece, not from ticks."""

    now_s: float = 1000.0
    step_s_per_context: float = 0.0
    overhead_s: float = 0.004
    pieces: list[tuple[float, float, float]] = field(default_factory=list)

    def draw(self, watts: float, seconds: float) -> tuple[float, float]:
        """Draw power for some time."""
        start_s = self.now_s
        self.now_s += seconds
        self.pieces.append((start_s, self.now_s, watts))
        return start_s, self.now_s

    def batch(self, prompt: int, output: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """One batch: overhead in which the GPU waits, prefill, decode steps that grow with the context."""
        self.draw(IDLE_W, self.overhead_s)
        first = self.draw(PREFILL_W, PREFILL_S_PER_TOKEN * prompt * ROWS)
        step_s = STEP_S + self.step_s_per_context * (prompt + output / 2)
        return first, self.draw(DECODE_W, step_s * (output - 1))

    def joules(self, start_s: float, end_s: float) -> float:
        """The truth between two instants."""
        return math.fsum(w * max(0.0, min(b, end_s) - max(a, start_s)) for a, b, w in self.pieces)

    def ticks(self, *, phase: float, lag_s: float = LAG_S, jitter_s: float = 0.0, seed: int = 1) -> list[Tick]:
        """A counter that shows every 100 ms what had been drawn a lag before; read to 5 ms."""
        noise = random.Random(seed)
        start_s, end_s = self.pieces[0][0], self.now_s + 1
        found, sofar, k, done_s = [], 0.0, 0, start_s
        while (at_s := start_s + (k + phase) * 0.1) < end_s:
            seen_s = at_s - lag_s - noise.gauss(0, jitter_s)
            sofar += self._since(done_s, seen_s)
            done_s = max(done_s, seen_s)
            late_s = noise.uniform(0, 0.005)
            found.append(Tick(before_s=at_s - 0.005 + late_s, after_s=at_s + late_s, joules=round(sofar, 3)))
            k += 1
        return found

    def _since(self, start_s: float, end_s: float) -> float:
        near = [p for p in self.pieces if p[1] > start_s and p[0] < end_s]
        return math.fsum(w * max(0.0, min(b, end_s) - max(a, start_s)) for a, b, w in near)


def _segment(world: World, name: str, prompt: int, output: int, *, seconds: float = 10.0) -> Segment:
    start_s, spans = world.now_s, []
    while world.now_s - start_s < seconds:
        first, rest = world.batch(prompt, output)
        if name == "decode":
            spans.append(Span("decode", *first, 0))
        else:
            spans.append(Span("prefill", *first, ROWS * prompt))
        if output > 1:
            phase = "decode_long" if name == "context" else "decode"
            spans.append(Span(phase, *rest, ROWS * (output - 1), prompt + output / 2))
    end_s = world.now_s
    world.draw(IDLE_W, 1.0)
    return Segment(name, start_s, end_s, tuple(spans))


def board(ticks: Sequence[Tick], idle_w: float | None = IDLE_W) -> Board:
    """A GPU with these ticks."""
    return Board("GPU-a", EnergySeries(tuple(ticks)), idle_w)


@dataclass(frozen=True)
class Played:
    """A main window and its probes as they were played."""

    world: World
    mix: Mix
    probes: Sequence[Segment]

    def split(self, *, assumed_lag_s: float = LAG_S, idle_w: float | None = IDLE_W, **ticks: float) -> PhaseSplit:
        """Split by what one counter saw."""
        seen = self.world.ticks(**{"phase": 0.3, **ticks})  # type: ignore[arg-type]  # seed is a float only here
        return split(self.probes, self.mix, [board(seen, idle_w)], lag_s=assumed_lag_s)


def _play(*, probes: Sequence[str] = ("prefill", "decode"), **world: float) -> Played:
    """60 s of work, a second idle around it, then the probes."""
    here = World(**world)
    here.draw(IDLE_W, 2.0)
    start_s, batches = here.now_s, 0
    while here.now_s - start_s < 60:
        here.batch(PROMPT, OUTPUT)
        batches += 1
    end_s = here.now_s
    here.draw(IDLE_W, 2.0)
    mix = Mix(
        start_s=start_s,
        end_s=end_s,
        prefill_tokens=batches * ROWS * PROMPT,
        decode_tokens=batches * ROWS * (OUTPUT - 1),
        decode_context=PROMPT + OUTPUT / 2,
        energy_j=here.joules(start_s, end_s),
        concurrency=ROWS,
    )
    shapes = {"prefill": (PROMPT, 1), "decode": (8, OUTPUT), "context": (PROMPT, OUTPUT // 2), "mixed": (PROMPT, 20)}
    return Played(here, mix, [_segment(here, name, *shapes[name]) for name in probes])


@pytest.fixture(scope="module")
def played() -> Played:
    """The ordinary case."""
    return _play()


TRUE_PREFILL_J = (PREFILL_W - IDLE_W) * PREFILL_S_PER_TOKEN
TRUE_DECODE_J = (DECODE_W - IDLE_W) * STEP_S / ROWS


@pytest.mark.parametrize("phase", [k / 8 for k in range(8)])
def test_the_truth_comes_back_at_every_phase_of_the_counter(phase: float, played: Played) -> None:
    """Lag 12 ms, jitter 2 ms, polls 5 ms: both phases within 1 %, the main window predicted within 1 %."""
    found = played.split(phase=phase, jitter_s=0.002)
    assert found.reason is None
    assert found.energy_per_prefill_token_j == pytest.approx(TRUE_PREFILL_J, rel=0.01)
    assert found.energy_per_decode_token_j == pytest.approx(TRUE_DECODE_J, rel=0.01)
    assert found.closure == pytest.approx(0.0, abs=0.01)
    assert found.condition_number is not None
    assert found.condition_number < 3


def test_shares_are_those_of_the_window(played: Played) -> None:
    """Idle, prefill and decode shares add up to 1 and are what the pieces of the main window say."""
    found = played.split()
    total = played.mix.energy_j or math.nan
    seconds = played.mix.end_s - played.mix.start_s
    assert found.idle_share == pytest.approx(IDLE_W * seconds / total, abs=0.005)
    assert found.prefill_share == pytest.approx(TRUE_PREFILL_J * played.mix.prefill_tokens / total, abs=0.005)
    assert found.decode_share == pytest.approx(TRUE_DECODE_J * played.mix.decode_tokens / total, abs=0.005)
    assert sum(s or 0 for s in (found.idle_share, found.prefill_share, found.decode_share)) == pytest.approx(1.0)


def test_ticks_are_shifted_by_the_lag() -> None:
    """Phases that change every few ticks, a lag of 50 ms: shifted by it the truth comes back, cut as they came not."""
    mixed = _play(probes=("mixed",))
    right, naive = (mixed.split(lag_s=0.05, assumed_lag_s=lag_s) for lag_s in (0.05, 0.0))
    assert right.lag_s == 0.05
    assert right.energy_per_prefill_token_j == pytest.approx(TRUE_PREFILL_J, rel=0.02)
    assert naive.energy_per_prefill_token_j is not None
    assert naive.energy_per_prefill_token_j < 0.9 * TRUE_PREFILL_J


def test_decode_is_given_at_the_windows_context() -> None:
    """Steps that grow with the context: two contexts are probed, and the window's own lies between or beside them."""
    grown = _play(probes=("prefill", "decode", "context"), step_s_per_context=20e-6)
    found = grown.split(jitter_s=0.002)
    at = (DECODE_W - IDLE_W) * (STEP_S + 20e-6 * grown.mix.decode_context) / ROWS
    assert found.reason is None
    assert found.energy_per_decode_token_j == pytest.approx(at, rel=0.01)
    assert found.energy_per_decode_and_context_token_j == pytest.approx((DECODE_W - IDLE_W) * 20e-6 / ROWS, rel=0.1)
    assert found.closure == pytest.approx(0.0, abs=0.01)


def test_without_the_second_context_closure_tells() -> None:
    """A decode probe at a context far from the window's misses its energy; the closure says so, no figure is given."""
    found = _play(probes=("prefill", "decode"), step_s_per_context=60e-6).split()
    assert found.closure is not None
    assert found.closure < -0.10
    assert found.energy_per_decode_token_j is None
    assert "phase_split_unidentified" in (found.reason or "")


def test_steady_traffic_is_not_identified() -> None:
    """Batches of 20 ms, each with both phases, look alike to every tick: no figure, however well it would close."""
    world = World(overhead_s=0.0)
    world.draw(IDLE_W, 2.0)
    start_s, spans = world.now_s, []
    while world.now_s - start_s < 20:
        spans.append(Span("prefill", *world.draw(PREFILL_W, 0.008), 10))
        spans.append(Span("decode", *world.draw(DECODE_W, 0.012), 10))
    end_s = world.now_s
    world.draw(IDLE_W, 1.0)
    mix = Mix(start_s, end_s, 10, 10, 1.0, world.joules(start_s, end_s), 1)
    found = Played(world, mix, [Segment("both", start_s, end_s, tuple(spans))]).split(jitter_s=0.002)
    assert found.energy_per_prefill_token_j is None
    assert "phase_split_unidentified" in (found.reason or "")
    assert "apart" in (found.reason or "")


def _lose(ticks: list[Tick], at_s: float, count: int) -> list[Tick]:
    first = next(k for k, t in enumerate(ticks) if t.t_s >= at_s)
    return ticks[:first] + ticks[first + count :]


def test_both_phases_must_have_been_probed() -> None:
    """Without a decode probe there is no split."""
    assert "no probe of decode" in (_play(probes=("prefill",)).split().reason or "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda p: (p.mix, p.world.ticks(phase=0.3), None), "loaded and waiting", id="idle unknown"),
        pytest.param(
            lambda p: (replace(p.mix, energy_j=None), p.world.ticks(phase=0.3), IDLE_W), "energy is unknown", id="no J"
        ),
        pytest.param(
            lambda p: (p.mix, _lose(p.world.ticks(phase=0.3), p.mix.start_s + 20, 4), IDLE_W),
            "4 ticks in a row are missing in window",
            id="gap in the window",
        ),
        pytest.param(
            lambda p: (p.mix, _lose(p.world.ticks(phase=0.3), p.probes[1].start_s + 5, 5), IDLE_W),
            "5 ticks in a row are missing in decode",
            id="gap in a probe",
        ),
        pytest.param(
            lambda p: (p.mix, p.world.ticks(phase=0.3), DECODE_W), "draws no more than idle", id="no power above idle"
        ),
        pytest.param(
            lambda p: (replace(p.mix, energy_j=1.2 * (p.mix.energy_j or 0)), p.world.ticks(phase=0.3), IDLE_W),
            "-17 %",
            id="does not close",
        ),
    ],
)
def test_what_cannot_be_told_is_null_with_its_reason(
    change: Callable[[Played], tuple[Mix, list[Tick], float | None]], said: str, played: Played
) -> None:
    """Every way to fail gives null and says which it was."""
    mix, ticks, idle_w = change(played)
    found = split(played.probes, mix, [board(ticks, idle_w)], lag_s=LAG_S)
    assert (found.energy_per_prefill_token_j, found.energy_per_decode_token_j, found.idle_share) == (None, None, None)
    assert (found.reason or "").startswith("phase_split_unidentified: ")
    assert said in (found.reason or "")


def test_three_missing_ticks_are_bridged(played: Played) -> None:
    """A cumulative counter loses nothing: up to three missing ticks in a row change no figure by 1 %."""
    ticks = _lose(played.world.ticks(phase=0.3), played.probes[0].start_s + 5, 3)
    found = split(played.probes, played.mix, [board(ticks)], lag_s=LAG_S)
    assert found.energy_per_prefill_token_j == pytest.approx(TRUE_PREFILL_J, rel=0.01)


def test_boards_add_up(played: Played) -> None:
    """Two GPUs with counters out of step that each draw the same give twice the joules of one."""
    seen = [board(played.world.ticks(phase=p)) for p in (0.1, 0.6)]
    mix = replace(played.mix, energy_j=2 * (played.mix.energy_j or 0))
    found = split(played.probes, mix, seen, lag_s=LAG_S)
    assert found.energy_per_prefill_token_j == pytest.approx(2 * TRUE_PREFILL_J, rel=0.01)
    assert found.idle_power_w == 2 * IDLE_W
    assert found.closure == pytest.approx(0.0, abs=0.01)


def test_noisy_ticks_are_refused(played: Played) -> None:
    """Ticks that scatter more than the phases differ: the standard error is over 10 %, no figure is given."""
    ticks = played.world.ticks(phase=0.3)
    noise = random.Random(7)
    sofar, loud = 0.0, []
    for before, after in pairwise(ticks):
        sofar += (after.joules - before.joules) * noise.choice([0.0, 0.0, 0.0, 4.0])
        loud.append(replace(after, joules=sofar))
    found = split(played.probes, played.mix, [board(loud)], lag_s=LAG_S)
    assert "standard error" in (found.reason or "")
    assert found.prefill_relative_error is not None
    assert found.prefill_relative_error > 0.10


def test_slow_changes_of_power_are_no_repetitions(played: Played) -> None:
    """The same scatter of ticks, once from tick to tick and once as a slow wave: the wave leaves the larger error."""

    def error(period_ticks: float) -> float:
        sofar, seen = 0.0, []
        for k, (before, after) in enumerate(pairwise(played.world.ticks(phase=0.3))):
            sofar += (after.joules - before.joules) * (1 + 0.15 * math.sin(2 * math.pi * k / period_ticks))
            seen.append(replace(after, joules=sofar))
        return split(played.probes, played.mix, [board(seen)], lag_s=LAG_S).prefill_relative_error or math.nan

    assert error(40.0) > 3 * error(2.7)
