"""Who else used the GPU: planted neighbours of every kind are found, clean runs of every kind are left in peace."""

from collections.abc import Sequence
from typing import Any

import pytest

from llenergymeasure.core.contracts import Occupants, Reading
from llenergymeasure.core.occupancy import Occupancy, Span, occupancy

A, B = "GPU-a", "GPU-b"
SPAN = Span(load_s=40.0, start_s=100.0, end_s=160.0)
BEFORE, LOADED, WINDOW, AFTER = range(40), range(40, 100), range(100, 161), range(161, 163)
ALL = range(163)
OWN, HELPER, OTHER, SCREEN = 4001, 4002, 777, 900
ONLY_OWN = frozenset({OWN, HELPER})

Pids = dict[int, Sequence[int]]
"""Process ids, and the looks (one a second) at which they are seen."""


def looks(
    compute: Pids | None,
    *,
    graphics: Pids | None = None,
    busy: Pids | None = None,
    memory: Any = None,
    listed: Any = None,
    uuid: str = A,
) -> list[Occupants]:
    """A look a second; None where the driver does not tell."""

    def at(pids: Pids | None, t: int) -> tuple[int, ...] | None:
        return None if pids is None else tuple(p for p, when in pids.items() if t in when)

    return [
        Occupants(
            t + 0.3, uuid, at(compute, t), at(graphics, t), at(busy, t),
            memory(t) if memory else None, listed(t) if listed else None,
        )
        for t in ALL
    ]  # fmt: skip


def judged(rows: list[Occupants], own: frozenset[int] = ONLY_OWN, readings: Sequence[Reading] = ()) -> Occupancy:
    return occupancy(rows, readings, own, SPAN)


WORKING = [*LOADED, *WINDOW, *AFTER]
METAL: Pids = {HELPER: range(5, 35), OWN: WORKING}
HOST_OWN, HOST_OTHER = 90001, 90777  # the same processes as the host numbers them

CLEAN = [
    pytest.param([], ONLY_OWN, id="nothing recorded"),
    pytest.param(looks(METAL, busy={OWN: WORKING}), ONLY_OWN, id="bare metal with the baseline's helper"),
    pytest.param(looks({OWN: WORKING, OTHER: [0]}), ONLY_OWN, id="somebody who was just going away"),
    pytest.param(looks({OWN: WORKING}, busy={HOST_OWN: WORKING}), ONLY_OWN, id="pod: own ids listed, host ids busy"),
    pytest.param(
        looks({OWN: WORKING}, busy={HOST_OWN: range(103, 161)}), ONLY_OWN, id="pod: utilisation told with a delay"
    ),
    pytest.param(
        looks({OWN: WORKING, HELPER: WORKING}, busy={HOST_OWN: WORKING, 90002: range(103, 161)}),
        ONLY_OWN,
        id="pod: the second of two processes told with a delay",
    ),
    pytest.param(looks({HOST_OWN: WORKING}), ONLY_OWN, id="container that lists host ids"),
    pytest.param(looks({HOST_OWN: ALL}), ONLY_OWN, id="host ids, and our process used the GPU before"),
    pytest.param(looks({}), ONLY_OWN, id="container that lists nobody"),
    pytest.param(looks(None), ONLY_OWN, id="driver that lists nobody"),
    pytest.param(looks({OWN: WORKING}, busy={HOST_OWN: ALL}), ONLY_OWN, id="host ids, busy all the time"),
    pytest.param(looks({}, busy={HOST_OWN: range(42, 163)}), ONLY_OWN, id="nobody listed, host ids busy"),
    pytest.param(
        looks({}, busy={90002: range(42, 70), HOST_OWN: range(80, 163)}), ONLY_OWN, id="nobody listed, another one built"
    ),
    pytest.param(
        looks({}, busy={HOST_OWN: range(42, 163), 90002: range(44, 163)}), ONLY_OWN, id="nobody listed, two of ours"
    ),
    pytest.param(
        looks({}, busy={HOST_OWN: range(42, 163), HOST_OTHER: range(60, 80)}), ONLY_OWN, id="one that was gone by then"
    ),
    pytest.param(looks({OWN: ALL}), ONLY_OWN, id="this process used the GPU before"),
    pytest.param(
        looks({OWN: ALL}, memory=lambda _: 30_000.0), ONLY_OWN, id="this process kept memory of an earlier experiment"
    ),
    pytest.param(looks({OWN: WORKING, 4003: WORKING}), frozenset({OWN, 4003}), id="two processes of one engine"),
    pytest.param(looks(METAL), frozenset(), id="own ids unknown"),
    pytest.param(
        looks(METAL, memory=lambda t: 500.0 if t in BEFORE else 70_000.0, listed=lambda t: 0.0 if t in BEFORE else 69_800.0),
        ONLY_OWN,
        id="own memory and the driver's",
    ),
    pytest.param(
        looks({}, memory=lambda t: 0.0 if t in BEFORE else 70_000.0, listed=lambda _: 0.0), ONLY_OWN, id="memory of unlisted own"
    ),
    pytest.param(looks(METAL, memory=lambda t: 560.0 if t in range(5, 35) else 0.0), ONLY_OWN, id="the helper's context"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "own"), CLEAN)
def test_a_clean_run_is_not_called_shared(rows: list[Occupants], own: frozenset[int]) -> None:
    """Whatever the place shows of our own processes."""
    assert not judged(rows, own).shared


FOREIGN = [
    pytest.param(looks({**METAL, OTHER: BEFORE}), [OTHER], id="before"),
    pytest.param(looks({**METAL, OTHER: [120, 121]}), [OTHER], id="during"),
    pytest.param(looks({**METAL, OTHER: AFTER}), [OTHER], id="after"),
    pytest.param(looks({**METAL, OTHER: ALL, 778: ALL}), [OTHER, 778], id="two, all along"),
    pytest.param(looks(METAL, busy={OWN: WORKING, OTHER: WINDOW}), [OTHER], id="busy and not listed"),
    pytest.param(
        looks({OWN: WORKING}, busy={HOST_OWN: WORKING, HOST_OTHER: ALL}), [HOST_OTHER], id="pod: there before"
    ),
    pytest.param(
        looks({OWN: WORKING}, busy={HOST_OWN: WORKING, HOST_OTHER: range(130, 161)}), [HOST_OTHER], id="pod: came later"
    ),
    pytest.param(
        looks({OWN: WORKING}, busy={HOST_OWN: WORKING, HOST_OTHER: range(60, 161)}), [], id="pod: came while we loaded"
    ),
    pytest.param(
        looks({}, busy={HOST_OWN: range(42, 163), HOST_OTHER: range(60, 163)}),
        [HOST_OTHER],
        id="nobody listed: came while we settled",
    ),
    pytest.param(looks({HOST_OWN: WORKING, HOST_OTHER: ALL}), [HOST_OTHER], id="host ids: there before"),
    pytest.param(looks({HOST_OWN: WORKING, HOST_OTHER: range(120, 161)}), [HOST_OTHER], id="host ids: came later"),
    pytest.param(looks({}, memory=lambda t: 20_000.0 if t in BEFORE else 90_000.0), [], id="memory before we loaded"),
    pytest.param(
        looks({OWN: WORKING}, memory=lambda t: 20_500.0, listed=lambda t: 0.0 if t in BEFORE else 18_000.0),
        [],
        id="memory beyond ours",
    ),
]


@pytest.mark.parametrize(("rows", "pids"), FOREIGN)
def test_a_neighbour_is_found_with_its_id_where_that_is_known(rows: list[Occupants], pids: list[int]) -> None:
    """Listed, busy, or only by its memory."""
    found = judged(rows)
    assert found.shared
    assert found.gpu_uuid == A
    assert found.foreign_pids == pids
    assert all(str(p) in (found.sentence or "") for p in pids)


def test_the_gpu_that_is_shared_is_the_one_that_is_told() -> None:
    """Of two GPUs the second has a neighbour."""
    rows = [*looks(METAL), *looks({**METAL, OTHER: ALL}, uuid=B)]
    assert judged(rows).gpu_uuid == B
    assert judged(rows).foreign_pids == [OTHER]


def idle(percent: float) -> list[Reading]:
    """Utilisation before the engine is loaded, and at work."""
    return [Reading(float(t), A, 0, sm_utilisation_pct=percent if t in BEFORE else 99.0) for t in ALL]


DISPLAYS = [
    pytest.param({SCREEN: ALL}, METAL, 1.0, [SCREEN], False, id="a desktop that is still"),
    pytest.param({SCREEN: ALL}, {**METAL, SCREEN: ALL}, 1.0, [SCREEN], False, id="one that computes its picture"),
    pytest.param({SCREEN: ALL}, METAL, 5.1, [SCREEN], True, id="one that keeps the GPU busy"),
    pytest.param({}, METAL, 50.0, [], False, id="no display: a busy idle GPU is for its processes to explain"),
    pytest.param({OWN: ALL}, METAL, 50.0, [], False, id="our own graphics context"),
]


@pytest.mark.parametrize(("graphics", "compute", "idle_pct", "pids", "shared"), DISPLAYS)
def test_a_display_is_a_warning_unless_it_works(
    graphics: Pids, compute: Pids, idle_pct: float, pids: list[int], shared: bool
) -> None:
    """Graphics only: told; above 5 % utilisation before our engine: shared."""
    found = judged(looks(compute, graphics=graphics), readings=idle(idle_pct))
    assert (found.display_pids, found.shared) == (pids, shared)
