"""Follows one recorded run of an H100 by hand, from ticks to a budget: prints the figures of docs/measurement.md.

    python benchmarks/worked_example.py

Needs nothing but the record: joules are computed here from its ticks, by the formulas of that page and without llem.
tests/house/test_worked_example.py holds this output against the page and against what the run stored.
"""

import gzip
import json
from functools import cache
from itertools import pairwise
from math import hypot, sqrt
from pathlib import Path
from statistics import covariance, fmean, stdev, variance
from typing import Any

RECORD = Path(__file__).resolve().parent / "results" / "gpu_spread_h100.json.gz"
RUN = "00001_c1_llem-7b-pytorch_e778fbef"  # batch size 8, first cycle
JITTER_S = 0.004  # of the ticks, since no self-test had been run on that machine
BETWEEN_RUNS = 0.01  # assumed
GAIN_LIMIT = 0.10
T_975 = 1.959964  # Student's t for infinitely many degrees of freedom
AVERAGE_LAG_S = 0.5  # the average power field is a mean over the last second
EDGE_ALLOWANCE_S, STEP_SPAN_S = 0.3, 0.8
GUARD = 5
MINUS = "\N{MINUS SIGN}"

Points = list[tuple[float, float]]


class Counter:
    """The ticks of the run's GPU; times in s from the start of the window."""

    def __init__(self, table: dict[str, list[float]]) -> None:
        self.joules = table["joules"]
        self.width_s = [after - before for before, after in zip(table["before_s"], table["after_s"], strict=True)]
        self.t_s = [(b + a) / 2 for b, a in zip(table["before_s"], table["after_s"], strict=True)]

    def last_before(self, t_s: float) -> int:
        return max(i for i, t in enumerate(self.t_s) if t <= t_s)

    def power_w(self, first: int, last: int) -> float:
        return (self.joules[last] - self.joules[first]) / (self.t_s[last] - self.t_s[first])

    def interpolated_j(self, t_s: float) -> float:
        i = self.last_before(t_s)
        return self.joules[i] + self.power_w(i, i + 1) * (t_s - self.t_s[i])

    def mean_w(self, start_s: float, end_s: float) -> float:
        return (self.interpolated_j(end_s) - self.interpolated_j(start_s)) / (end_s - start_s)

    def row(self, i: int) -> str:
        cells = f"{self.t_s[i]:.4f} | {1e3 * self.width_s[i]:.1f} | {self.joules[i]:.3f} | {self.power_w(i, i + 1):.1f}"
        return f"| {cells} |".replace("| -", f"| {MINUS}")


class Edge:
    """A quiet edge: the tick that is read, the waiting power and its uncertainty from five ticks further out."""

    def __init__(self, counter: Counter, tick: int, outwards: int, edge_s: float) -> None:
        first, last = sorted((tick, tick + outwards * GUARD))
        powers = [counter.power_w(i, i + 1) for i in range(first, last)]
        self.joules, self.gap_s = counter.joules[tick], abs(edge_s - counter.t_s[tick])
        self.power_w, self.u_power_w = counter.power_w(first, last), sqrt(variance(powers) / GUARD)
        self.sigma_t_s = sqrt(counter.width_s[tick] ** 2 / 12 + JITTER_S**2)
        self.spread = (max(powers) - min(powers)) / self.power_w
        middles_s = [(counter.t_s[i] + counter.t_s[i + 1]) / 2 for i in range(first, last)]
        self.trend_w_per_s = covariance(middles_s, powers) / variance(middles_s)
        self.moved_w = abs(self.trend_w_per_s) * (counter.t_s[last] - counter.t_s[first] + self.gap_s) / 2
        self.steady_variance_j2 = (self.power_w * self.sigma_t_s) ** 2 + (self.gap_s * self.u_power_w) ** 2
        self.variance_j2 = self.steady_variance_j2 + (self.gap_s * self.moved_w) ** 2


def integral_j(points: Points, start_s: float, end_s: float) -> float:
    """Integral of straight lines between the points."""
    total = 0.0
    for (t0, p0), (t1, p1) in pairwise(points):
        low, high = max(t0, start_s), min(t1, end_s)
        if high > low:
            total += (high - low) * (p0 + (p1 - p0) / (t1 - t0) * ((low + high) / 2 - t0))
    return total


@cache
def runs() -> dict[str, dict[str, Any]]:
    """All runs of the study by their names."""
    return {r["run"]: r for r in json.loads(gzip.decompress(RECORD.read_bytes()))["runs"]}


def load() -> tuple[dict[str, Any], dict[str, Any]]:
    """What the run stored, and what was recorded of its sensors."""
    return runs()[RUN]["result"], runs()[RUN]["recording"]


def scatter() -> float:
    """Standard deviation of the joules per token of this configuration's runs over their mean."""
    name = RUN.rpartition("_")[2]
    values = [r["result"]["energy_per_output_token_j"] for key, r in runs().items() if key.endswith(name)]
    return stdev(values) / fmean(values)


def computed() -> dict[str, float]:
    """The figures that the run stored, too, computed from its ticks."""
    result, recording = load()
    ((_, table),) = recording["ticks"].items()
    counter, end_s = Counter(table), recording["window_s"]
    begin, finish = edges(counter, end_s)
    energy_j = finish.joules - begin.joules - begin.power_w * begin.gap_s - finish.power_w * finish.gap_s
    edge = sqrt(begin.variance_j2 + finish.variance_j2) / energy_j
    comparison = T_975 * hypot(edge, BETWEEN_RUNS)
    ratios = second_readings(counter, recording)
    return {
        "energy_j": energy_j,
        "j_per_token": energy_j / result["output_tokens"],
        "edge": edge,
        "edge_without_trend": sqrt(begin.steady_variance_j2 + finish.steady_variance_j2) / energy_j,
        "comparison": comparison,
        "absolute": hypot(0.95 * GAIN_LIMIT, comparison),
        "loaded_idle_w": begin.power_w,
        **ratios,
    }


def edges(counter: Counter, end_s: float) -> tuple[Edge, Edge]:
    """Both edges: read at the last tick but one before the work, and at the second after it."""
    a, b = counter.last_before(0.0) - 1, counter.last_before(end_s) + 2
    return Edge(counter, a, -1, 0.0), Edge(counter, b, 1, end_s)


def second_readings(counter: Counter, recording: dict[str, Any]) -> dict[str, float]:
    """Both power sensors integrated between the first tick in the window and the one nearest its end."""
    end_s, readings = recording["window_s"], recording["readings"]
    ((_, samples),) = recording["samples"].items()
    last = min(range(len(counter.t_s)), key=lambda i: abs(counter.t_s[i] - end_s))
    first = counter.last_before(0.0) + 1
    counted_j = counter.joules[last] - counter.joules[first]
    span = counter.t_s[first], counter.t_s[last]
    average = zip(readings["t_s"], readings["power_average_w"], strict=True)
    average_j = integral_j([(t - AVERAGE_LAG_S, p) for t, p in average if p is not None], *span)
    samples_j = integral_j(list(zip(samples["t_s"], samples["power_w"], strict=True)), *span)
    inside = counter.mean_w(0.0, end_s)
    outside = counter.mean_w(-STEP_SPAN_S, 0.0), counter.mean_w(end_s, end_s + STEP_SPAN_S)
    step_w = sum(abs(inside - p) for p in outside) / 2
    return {
        "counted_j": counted_j,
        "average_j": average_j,
        "samples_j": samples_j,
        "average power": average_j / counted_j,
        "sample buffer": samples_j / counted_j,
        "step_w": step_w,
        "allowance": EDGE_ALLOWANCE_S * step_w / counted_j,
    }


def tick_table(counter: Counter, end_s: float) -> list[str]:
    """The ticks from which both edges are cut."""
    a, b = counter.last_before(0.0) - 1, counter.last_before(end_s) + 2
    return [counter.row(i) for i in (*range(a - GUARD, a + 2), *range(b - 2, b + GUARD + 1))]


def figures() -> dict[str, str]:
    """Every figure of the example by its name, as the page writes it."""
    result, recording = load()
    ((_, table),) = recording["ticks"].items()
    counter, end_s, known = Counter(table), recording["window_s"], computed()
    a, b = edges(counter, end_s)
    energy_j, tokens = known["energy_j"], result["output_tokens"]
    plain_j = counter.interpolated_j(end_s) - counter.interpolated_j(0.0)
    found = {
        "P_a, P_b": f"{a.power_w:.2f} and {b.power_w:.2f} W",
        "spread of the guards": f"{100 * a.spread:.1f} and {100 * b.spread:.1f} %",
        "g_a, g_b": f"{a.gap_s:.4f} and {b.gap_s:.4f} s",
        "E": f"{b.joules:.3f} - {a.joules:.3f} - {a.power_w:.2f}·{a.gap_s:.4f} - {b.power_w:.2f}·{b.gap_s:.4f}",
        "its terms": f"{b.joules - a.joules:.3f} - {a.power_w * a.gap_s:.3f} - {b.power_w * b.gap_s:.3f}",
        "energy": f"{energy_j:.2f} J",
        "interpolated": f"{plain_j:.2f} J, {100 * (plain_j / energy_j - 1):.2f} %",
        "sigma_t": f"{1e3 * a.sigma_t_s:.2f} and {1e3 * b.sigma_t_s:.2f} ms",
        "s/√5 of the guards": f"{a.u_power_w:.2f} and {b.u_power_w:.2f} W",
        "trends of the guards": f"{a.trend_w_per_s:.1f} and {b.trend_w_per_s:.1f} W/s",
        "what the trends add up to": f"{a.moved_w:.2f} and {b.moved_w:.2f} W",
        "u(P_a), u(P_b)": f"{hypot(a.u_power_w, a.moved_w):.2f} and {hypot(b.u_power_w, b.moved_w):.2f} W",
        "terms of P·sigma_t": f"{a.power_w * a.sigma_t_s:.3f}² + {b.power_w * b.sigma_t_s:.3f}²",
        "terms of g·u(P)": (
            f"{a.gap_s * hypot(a.u_power_w, a.moved_w):.3f}² + {b.gap_s * hypot(b.u_power_w, b.moved_w):.3f}²"
        ),
        "u_edge": f"{known['edge'] * energy_j:.2f} J",
        "u_edge, relative": f"{100 * known['edge']:.4f} %",
        "requests": f"{result['requests']} requests",
        "tokens": f"{tokens:,} output tokens",
        "J/token": f"{known['j_per_token']:.5f} J per output token",
        "u_cmp": f"{100 * hypot(known['edge'], BETWEEN_RUNS):.4f} %",
        "U_cmp": f"{100 * known['comparison']:.2f} %",
        "U_abs": f"{100 * known['absolute']:.2f} %",
        "U_abs in joules": f"{known['absolute'] * known['j_per_token']:.3f} J",
        "between runs": f"scattered by {100 * scatter():.1f} %",
        "end of the window": f"t₁ = {end_s:.4f}",
        "counted": f"{known['counted_j']:.1f} J",
        "average power": f"{known['average_j']:.1f} J, ratio {known['average power']:.4f}",
        "sample buffer": f"{known['samples_j']:.1f} J, ratio {known['sample buffer']:.4f}",
        "allowance": f"{known['step_w']:.0f} W ÷ {known['counted_j']:.0f} J = {100 * known['allowance']:.1f} %",
        "verdict": f"`{result['verdict']['state']}`",
        **{f"warning {i}": f"`{w.partition(':')[0]}`" for i, w in enumerate(result["measurement_warnings"], 1)},
        **{f"tick {i}": line for i, line in enumerate(tick_table(counter, end_s), 1)},
    }
    return {name: text.replace("-", MINUS) if "tick" not in name else text for name, text in found.items()}


if __name__ == "__main__":
    for label, figure in figures().items():
        print(f"{label}: {figure}")
