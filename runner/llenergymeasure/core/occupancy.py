"""Whether anybody else used a GPU of this run, from process lists, utilisation and memory before and during its work.

Who belongs to the run is known by process ids, but what the driver lists differs with the place: bare metal shows
every process; a container with namespaces of its own may show its own processes with its own ids, those of the host,
or none; the ids behind utilisation are always those of the host (measurement.md §6). So each sign counts only where it
can tell: a clean run must never be called shared.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from pydantic import Field

from llenergymeasure.core.contracts import Occupants, Reading
from llenergymeasure.core.records import Record

SEEN_LEAST = 2
"""Looks at which something must have been seen: a process that is just going away is not a neighbour."""

FIRST_LOOKS = 4
"""Looks in the window by which our own processes must have shown: utilisation is told with a delay."""

FOREIGN_MEMORY_MB = 1024.0
"""More memory in use than our own processes and, on cards that count it in, the driver's reserve explain, MiB."""

IDLE_UTILISATION_PCT = 5.0
"""A display that keeps the idle GPU busier than this is no mere display."""


class Occupancy(Record):
    """Who else used a GPU of this run: `sentence` says how that is known; null where nobody did.

    `foreign_pids` are those that are known; ids may be the host's. `display_pids` draw, but do not compute.
    """

    gpu_uuid: str | None = None
    foreign_pids: list[int] = Field(default_factory=list)
    sentence: str | None = None
    display_pids: list[int] = Field(default_factory=list)
    foreign_memory_mb: float | None = None
    idle_utilisation_pct: float | None = None
    looks: int = 0

    @property
    def shared(self) -> bool:
        """Whether somebody else computed on it."""
        return self.sentence is not None


@dataclass(frozen=True)
class Span:
    """When the run itself used its GPUs: from the loading of its engine on; the window within that. Seconds."""

    load_s: float
    start_s: float
    end_s: float


@dataclass(frozen=True)
class _Seen:
    """One GPU: looks before the engine was loaded, after that, and those of them inside the window."""

    before: Sequence[Occupants]
    loaded: Sequence[Occupants]
    window: Sequence[Occupants]
    own_pids: frozenset[int]
    idle_utilisation_pct: float | None


def occupancy(
    occupants: Sequence[Occupants], readings: Sequence[Reading], own_pids: frozenset[int], span: Span
) -> Occupancy:
    """Judge every GPU; the first one that is shared, else the first one with a display, else none."""
    by_gpu: dict[str, list[Occupants]] = {}
    for look in sorted(occupants, key=lambda o: o.t_s):
        by_gpu.setdefault(look.gpu_uuid, []).append(look)
    idle = {uuid: _idle_utilisation(readings, uuid, span) for uuid in by_gpu}
    found = [_of_gpu(uuid, _split(looks, own_pids, span, idle[uuid])) for uuid, looks in by_gpu.items()]
    return min(found, key=lambda o: (not o.shared, not o.display_pids), default=Occupancy())


def _idle_utilisation(readings: Sequence[Reading], uuid: str, span: Span) -> float | None:
    values = [
        r.sm_utilisation_pct
        for r in readings
        if r.gpu_uuid == uuid and r.t_s < span.load_s and r.sm_utilisation_pct is not None
    ]
    return fmean(values) if len(values) >= SEEN_LEAST else None


def _split(looks: Sequence[Occupants], own_pids: frozenset[int], span: Span, idle_pct: float | None) -> _Seen:
    return _Seen(
        before=[o for o in looks if o.t_s < span.load_s],
        loaded=[o for o in looks if o.t_s >= span.load_s],
        window=[o for o in looks if span.start_s <= o.t_s <= span.end_s],
        own_pids=own_pids,
        idle_utilisation_pct=idle_pct,
    )


def _of_gpu(uuid: str, seen: _Seen) -> Occupancy:
    displays = _displays(seen)
    known = Occupancy(
        gpu_uuid=uuid,
        display_pids=sorted(displays),
        idle_utilisation_pct=seen.idle_utilisation_pct,
        foreign_memory_mb=_foreign_memory_mb(seen),
        looks=len(seen.before) + len(seen.loaded),
    )
    for judge in (_listed, _busy, _memory, _busy_display):
        pids, sentence = judge(seen, displays, known)
        if sentence is not None:
            return known.model_copy(update={"foreign_pids": sorted(pids), "sentence": sentence})
    return known


_Judged = tuple[Iterable[int], str | None]
_NOBODY: _Judged = ((), None)


def _displays(seen: _Seen) -> set[int]:
    """Processes that draw and are not ours, at two looks or more."""
    every = [*seen.before, *seen.loaded]
    return set(_often(o.graphics_pids for o in every)) - seen.own_pids


def _often(lists: Iterable[Sequence[int] | None]) -> list[int]:
    """Process ids that stand in at least two of these lists."""
    counts = Counter(pid for pids in lists for pid in set(pids or ()))
    return [pid for pid, n in counts.items() if n >= SEEN_LEAST]


def _listed(seen: _Seen, displays: set[int], known: Occupancy) -> _Judged:
    """Processes that the driver lists as computing and that are not ours."""
    del known
    every = [*seen.before, *seen.loaded]
    if _names_ours(seen):
        foreign = set(_often(o.compute_pids for o in every)) - seen.own_pids - displays
    else:  # other ids than ours: what was there before our engine, or came in the midst of its work, is not ours
        at_work = set(_often(o.compute_pids for o in seen.window)) - displays
        stayed = _stayed(at_work, set(_often(o.compute_pids for o in seen.before)))
        foreign = (stayed | _came(seen.window, lambda o: o.compute_pids)) - displays
    return (foreign, f"{_named(foreign)} computed on the GPU") if foreign else _NOBODY


def _names_ours(seen: _Seen) -> bool:
    """Whether the driver's list has our processes under the ids by which we know them."""
    return any(seen.own_pids & set(o.compute_pids or ()) for o in seen.loaded)


def _stayed(at_work: set[int], before: set[int]) -> set[int]:
    """Who worked beside our engine and was there before it; nobody if then none would be left to be our engine."""
    return at_work & before if at_work - before else set()


def _came(window: Sequence[Occupants], pids_of: Callable[[Occupants], Sequence[int] | None]) -> set[int]:
    """Who was not there at the first looks in the window, but at later ones."""
    at_first = {pid for o in window[:FIRST_LOOKS] for pid in pids_of(o) or ()}
    return set(_often(pids_of(o) for o in window[FIRST_LOOKS:])) - at_first if at_first else set()


def _joined(seen: _Seen, displays: set[int], at_work: set[int]) -> set[int]:
    """Who worked beside our engine and came after it, but before the window.

    Our engine is whoever was busy first after it was loaded; nobody joined it if that one is not at work in the window,
    as where an engine was built by another process. Needed only where the list does not say how many we are.
    """
    if _names_ours(seen) or not seen.window:
        return set()
    before = {pid for o in seen.before for pid in o.busy_pids or ()}
    looks = [set(o.busy_pids or ()) - before - displays for o in seen.loaded if o.t_s < seen.window[0].t_s]
    first = set().union(*[pids for pids in looks if pids][:FIRST_LOOKS])
    return at_work - first - before if first & at_work else set()


def _busy(seen: _Seen, displays: set[int], known: Occupancy) -> _Judged:
    """Processes with utilisation that cannot be ours, among them those outside our container."""
    del known
    at_work = set(_often(o.busy_pids for o in seen.window)) - displays
    if seen.own_pids & at_work:  # our ids are the host's
        foreign = set(_often(o.busy_pids for o in [*seen.before, *seen.loaded])) - seen.own_pids - displays
        return (foreign, f"{_named(foreign)} kept the GPU busy") if foreign else _NOBODY
    early = _stayed(at_work, set(_often(o.busy_pids for o in seen.before)))
    later = _came(seen.window, lambda o: o.busy_pids) - displays
    foreign = early | _joined(seen, displays, at_work) | later
    if foreign:
        return foreign, f"{_named(foreign)}, outside this container, kept the GPU busy"
    ours = max((len(seen.own_pids & set(o.compute_pids or ())) for o in seen.window), default=0)
    if _names_ours(seen) and len(at_work) > ours:
        return (), f"{len(at_work)} processes kept the GPU busy, of which this run has {ours}"
    return _NOBODY


def _memory(seen: _Seen, displays: set[int], known: Occupancy) -> _Judged:
    """Memory that nobody whom we see can have."""
    del displays
    if known.foreign_memory_mb is None or known.foreign_memory_mb <= FOREIGN_MEMORY_MB:
        return _NOBODY
    when = "before the engine was loaded" if _beyond_listed(seen) is None else "beyond that of the listed processes"
    return (), f"{known.foreign_memory_mb:.0f} MiB of the GPU's memory were in use {when}"


def _foreign_memory_mb(seen: _Seen) -> float | None:
    """Memory in use that is not ours, MiB: beyond the listed processes', or before our engine was there."""
    beyond, idle = _beyond_listed(seen), _idle_memory_mb(seen)
    return beyond if beyond is not None else idle


def _beyond_listed(seen: _Seen) -> float | None:
    if not _names_ours(seen):
        return None
    values = [
        o.memory_used_mb - o.listed_memory_mb
        for o in seen.window
        if o.memory_used_mb is not None and o.listed_memory_mb is not None
    ]
    return max(0.0, median(values)) if len(values) > SEEN_LEAST else None


def _idle_memory_mb(seen: _Seen) -> float | None:
    """The least before the engine was loaded: a baseline's own context comes and goes.

    None where this process itself has used the GPU before, as a program may that measures several experiments.
    """
    if any(seen.own_pids & set(o.compute_pids or ()) for o in seen.before[-1:]):
        return None
    values = [o.memory_used_mb for o in seen.before if o.memory_used_mb is not None]
    return min(values) if len(values) > SEEN_LEAST else None


def _busy_display(seen: _Seen, displays: set[int], known: Occupancy) -> _Judged:
    """A display that does more than show a desktop."""
    idle = known.idle_utilisation_pct
    if not displays or idle is None or idle <= IDLE_UTILISATION_PCT:
        return _NOBODY
    return displays, f"{_named(displays)} drew on the GPU, which was {idle:.0f} % busy before the engine was loaded"


def _named(pids: Iterable[int]) -> str:
    listed = sorted(pids)
    return f"process{'es' if len(listed) > 1 else ''} {', '.join(map(str, listed))}"
