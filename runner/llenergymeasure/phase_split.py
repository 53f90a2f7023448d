"""Runs the probes of a phase split, after the window and outside it, and hands what was seen to the core.

Three segments at the main window's batch size: its prompts with one output token each (prefill only), short prompts
with its output lengths (decode only), and, where its context is at least twice that of the short prompts, its prompts
with half its output (decode at a long context). Each begins with unrecorded work, so that kernels of new shapes are
compiled and the power has followed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from statistics import fmean

from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import (
    DeviceEnergy,
    EnergyRecord,
    Generation,
    InferenceEngine,
    ModelFacts,
    PhaseTiming,
    Request,
    Window,
)
from llenergymeasure.core.energy_series import total
from llenergymeasure.core.phase_split import (
    CONTEXT_RATIO,
    LAG_S,
    Board,
    Mix,
    PhaseSplit,
    Segment,
    Span,
    split,
    unidentified,
)
from llenergymeasure.phases import Phases
from llenergymeasure.run_energy import RunEnergy

PROBE_S = 10.0  # least length of each segment (measurement.md §4)
WARM_S = 5.0  # most unrecorded work before a segment
SHORT_PROMPT = 8  # tokens; their prefill is one pass that is bound by the weights, as a decode step is
LEAST_OUTPUT = 16  # tokens, so that a decode probe is decode


@dataclass(frozen=True)
class Probes:
    """The recorded segments, or the reason why there are none."""

    segments: tuple[Segment, ...] = ()
    reason: str | None = None


def probe(
    config: ExperimentConfig,
    engine: InferenceEngine,
    energy: RunEnergy,
    batches: Sequence[tuple[Request, ...]],
    facts: ModelFacts,
    phases: Phases,
) -> Probes:
    """Run all segments; the engine has run the main window and is warm."""
    if (reason := _refused(config, engine, energy)) is not None:
        return Probes(reason=reason)
    assert isinstance(engine, PhaseTiming)
    kinds = _kinds(batches, facts)
    found = []
    for done, (name, work) in enumerate(kinds.items()):
        phases.progress("probes", done, len(kinds))
        found.append(_segment(name, work, engine, energy))
    return Probes(tuple(found))


def _refused(config: ExperimentConfig, engine: InferenceEngine, energy: RunEnergy) -> str | None:
    """Why probing would tell nothing."""
    if energy.source is None or not energy.devices:
        return energy.reason or "no GPU is measured"
    if energy.source.KIND == "estimate":
        return f"{energy.source.NAME} estimates power; the split needs the ticks of a counter"
    if not isinstance(engine, PhaseTiming):
        return f"{config.backend} does not tell when a batch's prefill ends"
    if config.decoder.decoding_strategy == "beam":
        return "with beam search the library does not tell when the prefill ends"
    return None


def _kinds(batches: Sequence[tuple[Request, ...]], facts: ModelFacts) -> dict[str, list[tuple[Request, ...]]]:
    """Batches of each segment by its name."""
    kinds = {"prefill": _each(batches, lambda r: replace(r, max_new_tokens=1))}
    kinds["decode"] = _each(batches, lambda r: _short(r, facts.context_length))
    if _context(batches) >= CONTEXT_RATIO * _context(kinds["decode"]):
        kinds["context"] = _each(batches, lambda r: replace(r, max_new_tokens=max(2, r.max_new_tokens // 2)))
    return kinds


def _each(batches: Sequence[tuple[Request, ...]], change: Callable[[Request], Request]) -> list[tuple[Request, ...]]:
    return [tuple(change(r) for r in batch) for batch in batches]


def _short(request: Request, context_length: int | None) -> Request:
    """The request with a short prompt; its output fits into the model's context."""
    ids, output = request.token_ids[:SHORT_PROMPT], max(LEAST_OUTPUT, request.max_new_tokens)
    room = output if context_length is None else context_length - len(ids)
    return replace(request, token_ids=ids, max_new_tokens=min(output, room))


def _context(batches: Sequence[tuple[Request, ...]]) -> float:
    """Mean context of the tokens that these batches will decode; 0 if they decode none."""
    return mean_context([(len(r.token_ids), r.max_new_tokens) for batch in batches for r in batch])


def mean_context(lengths: Sequence[tuple[int, int]]) -> float:
    """Mean number of tokens that a decoded token attended to, of (prompt, output) lengths; the first is prefill's."""
    decoded = sum(max(n - 1, 0) for _, n in lengths)
    return sum((n - 1) * (prompt + n / 2) for prompt, n in lengths if n > 1) / decoded if decoded else 0.0


def _segment(name: str, work: Sequence[tuple[Request, ...]], engine: PhaseTiming, energy: RunEnergy) -> Segment:
    """Unrecorded work, then whole batches for the segment's time."""
    until_s = time.monotonic() + WARM_S
    for batch in work:
        engine.generate_timed(batch)
        if time.monotonic() >= until_s:
            break
    spans: list[Span] = []
    start_s = energy.open(f"probe_{name}")
    for batch in cycle(work):
        seen = engine.generate_timed(batch)
        spans += _spans(name, seen)
        if seen.end_s - start_s >= PROBE_S:
            break
    return Segment(name, start_s, energy.close(f"probe_{name}"), tuple(spans))


def _spans(name: str, seen: Generation) -> list[Span]:
    """A batch's phases; a short prompt's pass counts as a step of decoding that gave no token."""
    first_s = seen.first_token_s if seen.first_token_s is not None else seen.end_s
    if name == "prefill":
        return [Span("prefill", seen.start_s, first_s, seen.input_tokens)]
    lengths = [(len(r.token_ids), len(o)) for r, o in zip(seen.requests, seen.output_token_ids, strict=True)]
    decoded, context = sum(max(n - 1, 0) for _, n in lengths), mean_context(lengths)
    if name == "decode":
        return [Span("decode", seen.start_s, first_s, 0), Span("decode", first_s, seen.end_s, decoded, context)]
    return [
        Span("prefill", seen.start_s, first_s, seen.input_tokens),
        Span("decode_long", first_s, seen.end_s, decoded, context),
    ]


def judge(probes: Probes, window: Window, generations: Sequence[Generation], record: EnergyRecord | None) -> PhaseSplit:
    """Give the split of the main window's energy, or the reason why there is none."""
    if probes.reason is not None or record is None:
        return unidentified(probes.reason or "no energy was recorded")
    devices = record.windows.get("window", ())
    lengths = [
        (len(r.token_ids), len(o)) for g in generations for r, o in zip(g.requests, g.output_token_ids, strict=True)
    ]
    mix = Mix(
        start_s=window.start_s,
        end_s=window.end_s,
        prefill_tokens=sum(prompt for prompt, _ in lengths),
        decode_tokens=sum(max(n - 1, 0) for _, n in lengths),
        decode_context=mean_context(lengths),
        energy_j=total(devices).value,
        concurrency=len(generations[0].requests),
    )
    boards = [Board(d.gpu_uuid, record.series[d.gpu_uuid], _idle_w(d)) for d in devices if d.gpu_uuid in record.series]
    lag_s, reason = _lag(record, devices)
    found = split(probes.segments, mix, boards, lag_s=lag_s)
    return found if found.lag_s is None else found.model_copy(update={"lag_reason": reason})


def _lag(record: EnergyRecord, devices: Sequence[DeviceEnergy]) -> tuple[float, str | None]:
    """Time by which ticks lag the load, s: the mean of the GPUs' self-tests; else the default and why it is used."""
    found = []
    for uuid in (d.gpu_uuid for d in devices):
        facts = record.sensors.get(uuid)
        if facts is None or facts.lag_s is None:
            return LAG_S, f"{uuid}: {facts.lag_reason if facts else 'the source tells nothing of its counter'}"
        found.append(facts.lag_s)
    return (fmean(found), None) if found else (LAG_S, None)


def _idle_w(device: DeviceEnergy) -> float | None:
    """Power with the engine loaded and waiting: the mean of the guards around the window, where they were quiet."""
    if device.edges == "interpolated":
        return None
    known = [p for p in (device.power_before_w, device.power_after_w) if p is not None]
    return sum(known) / len(known) if known else None
