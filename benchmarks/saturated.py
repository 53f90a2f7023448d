"""How well a window of a continuously batching engine holds whole work: its imbalance, and what that does to J/token.

    python benchmarks/saturated.py [--out FILE] [--windows N]

The pretended engine runs on a clock that only it moves, so a window of a minute takes a second or two. Each step draws
power by a formula of its own (waiting, prefilled tokens, decoded tokens, context), which shares no code with the
product; the truth is joules per output token over a window of five minutes. Beside each case stands what the same
prompts give when the queue is simply drained. Exit 1 if a target is missed.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from llenergymeasure import saturated
from llenergymeasure.backends import synthetic
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Finished, Request, Weights
from llenergymeasure.phases import Phases, silent
from llenergymeasure.run_energy import RunEnergy

WAITING_W, PREFILL_J, STEP_J, TOKEN_J, CONTEXT_J = 130.0, 0.012, 2.0, 0.045, 4e-5
BEGIN_S, SETTLE_S, WINDOW_S, TRUTH_S = 1000.0, 20.0, 60.0, 300.0
TARGET_ERROR_PCT, TARGET_APART_PCT = 0.2, 1.0
COUNTS, CAPACITIES = (100, 1000), (32, 96, 256)  # prompts, requests at once


@dataclass
class Virtual:
    """A clock that moves only when somebody sleeps."""

    now_s: float = BEGIN_S

    def monotonic(self) -> float:
        """Give the instant now, s."""
        return self.now_s

    def sleep(self, seconds: float, /) -> None:
        """Move on."""
        self.now_s += seconds


class Metered(synthetic.Engine):
    """The pretended engine with a power meter: the joules until the end of each step, by its instant."""

    def __init__(self, clock: Virtual) -> None:
        super().__init__(clock)
        self.virtual, self.counted = clock, True
        self.joules: dict[float, float] = {clock.now_s: 0.0}
        self.spent = 0.0

    def step(self) -> list[Finished]:
        """One step, metered: by its length, by what is prefilled and by what is decoded at which context."""
        before_s, queued, old = self.virtual.now_s, list(self._queue)[: self.capacity()], len(self._queue)
        ended = super().step()
        fresh = queued[: old - len(self._queue)]
        context = sum(len(r.request.token_ids) + r.done for r in self._batch)
        context += sum(len(r.request.token_ids) + len(r.output_token_ids) for r in ended)
        self.spent += WAITING_W * (self.virtual.now_s - before_s) + STEP_J
        self.spent += TOKEN_J * (len(self._batch) + len(ended)) + CONTEXT_J * context
        self.spent += PREFILL_J * sum(len(r.token_ids) for r in fresh)
        self.joules[self.virtual.now_s] = self.spent
        return ended

    def decoded(self) -> int | None:
        """As its script counts, or nothing."""
        return super().decoded() if self.counted else None

    def between(self, start_s: float, end_s: float) -> float:
        """Joules of the steps from one instant to another; both are ends of steps."""
        return self.joules[end_s] - self.joules[start_s]

    def _tokens(self, request: Request) -> tuple[int, ...]:
        return (0,) * request.max_new_tokens


class NoSource(RunEnergy):
    """Marks windows by the pretended clock."""

    def __init__(self, clock: Virtual) -> None:
        super().__init__(None, "")
        self.clock = clock

    def open(self, name: str) -> float:
        """Give the instant now, s."""
        del name
        return self.clock.now_s

    def close(self, name: str, edges: Any = "loaded") -> float:
        """Give the instant now, s."""
        del name, edges
        return self.clock.now_s


def requests(count: int, seed: int) -> list[Request]:
    """Prompts of 20 to 500 tokens, outputs of 32 to 224: evenly spread, so that every count has the same mix."""
    draw = random.Random(seed)
    inputs = [round(20 + 480 * (i + 0.5) / count) for i in range(count)]
    outputs = [round(32 + 192 * (i + 0.5) / count) for i in range(count)]
    draw.shuffle(inputs)
    draw.shuffle(outputs)
    return [Request(i, (0,) * a, b) for i, (a, b) in enumerate(zip(inputs, outputs, strict=True))]


def engine(capacity: int, clock: Virtual) -> Metered:
    """A loaded engine that runs `capacity` requests at once."""
    section = {
        "batching": "continuous",
        "max_num_seqs": capacity,
        "prefill_ms_per_token": 0.02,
        "decode_ms_per_step": 12,
    }
    made = Metered(clock)
    made.load(ExperimentConfig(model="m", backend="synthetic", synthetic=section), Weights("m", Path(), "none"))
    return made


def one(prompts: Sequence[Request], capacity: int, least_s: float, *, counted: bool = True) -> dict[str, float]:
    """A window after the settling: its length, imbalance and joules per output token.

    With `counted` the engine tells how many tokens it has decoded, else they follow from the requests' times.
    """
    clock = Virtual()
    made = engine(capacity, clock)
    made.counted = counted
    feed = saturated.Feed(cast("Any", made), prompts, clock=clock)
    while clock.now_s < BEGIN_S + SETTLE_S:
        feed.some_work()
    fed = saturated.measure(feed, NoSource(clock), Phases(silent), least_s=least_s)
    joules = made.between(fed.window.start_s, fed.window.end_s)
    assert fed.work.output_tokens
    return {
        "window_s": fed.window.duration_s,
        "imbalance": fed.work.imbalance,
        "j_per_token": joules / fed.work.output_tokens,
        "mean_running": fed.work.mean_running or 0.0,
    }


def drained(prompts: Sequence[Request], capacity: int) -> float:
    """Joules per output token when the prompts are queued once and the engine runs empty."""
    clock = Virtual()
    made = engine(capacity, clock)
    for request in prompts:
        made.submit(request)
    while made.running() or made.waiting():
        made.step()
    return made.spent / sum(r.max_new_tokens for r in prompts)


def case(count: int, capacity: int, windows: int, *, counted: bool) -> dict[str, Any]:
    """Windows over prompts in other orders each; errors of joules per token against a window five times as long."""
    found, errors, drains = [], [], []
    for seed in range(windows):
        prompts = requests(count, seed)
        window = one(prompts, capacity, WINDOW_S, counted=counted)
        truth = one(prompts, capacity, TRUTH_S)["j_per_token"]
        found.append(window)
        errors.append(window["j_per_token"] / truth - 1)
        drains.append(drained(prompts, capacity) / truth - 1)
    return {
        "n": count,
        "capacity": capacity,
        "tokens": "counted" if counted else "by times",
        "windows": windows,
        "window_s": fmean(w["window_s"] for w in found),
        "mean_running": fmean(w["mean_running"] for w in found),
        "imbalance_mean_pct": 100 * fmean(abs(w["imbalance"]) for w in found),
        "imbalance_max_pct": 100 * max(abs(w["imbalance"]) for w in found),
        "error_mean_pct": 100 * fmean(errors),
        "error_max_pct": 100 * max(map(abs, errors)),
        "drained_error_pct": 100 * fmean(drains),
        "j_per_token": fmean(w["j_per_token"] for w in found),
    }


def lengths(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Joules per token over few prompts against many, per number of requests that run at once."""
    found = []
    for capacity in CAPACITIES:
        few, many = ([c for c in cases if c["capacity"] == capacity and c["n"] == n] for n in COUNTS)
        ratio = fmean(c["j_per_token"] for c in few) / fmean(c["j_per_token"] for c in many)
        found.append({"capacity": capacity, "n100_over_n1000_pct": 100 * (ratio - 1)})
    return found


def main() -> None:
    """Run all cases, print them, write them if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--windows", type=int, default=3, help="per case, with the prompts in another order each")
    asked = parser.parse_args()
    cases = []
    for counted in (True, False):
        for count in COUNTS:
            for capacity in CAPACITIES:
                cases.append(case(count, capacity, asked.windows, counted=counted))
                print(json.dumps(cases[-1]), flush=True)
    apart = lengths([c for c in cases if c["tokens"] == "counted"])
    missed = [c for c in cases if max(c["error_max_pct"], c["imbalance_max_pct"]) > TARGET_ERROR_PCT]
    missed += [a for a in apart if abs(a["n100_over_n1000_pct"]) > TARGET_APART_PCT]
    found = {"targets_pct": [TARGET_ERROR_PCT, TARGET_APART_PCT], "cases": cases, "lengths": apart, "missed": missed}
    print(json.dumps({"lengths": apart, "missed": missed}))
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
