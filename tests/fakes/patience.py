"""Measurements on a machine that others use, too: where the sampler was starved, the product rightly gives no number."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import pytest

T = TypeVar("T")

TRIES = 3
STARVED = ("sample_gap", "window_too_short")
"""Reasons about edges: a tick there was missed, or read too slowly."""


def until_sure(
    measure: Callable[[], T], reasons: Callable[[T], Iterable[str | None]], *, starved: tuple[str, ...] = STARVED
) -> Iterator[T]:
    """Measure until no number is missing, three times at most; the test checks every number that was given.

    `reasons` are those of the numbers that are missing; one that does not speak of a starved sampler fails the test.
    """
    told: list[str] = []
    for _ in range(TRIES):
        found = measure()
        yield found
        told = [r for r in reasons(found) if r]
        if not told:
            return
        assert all(any(word in r for word in starved) for r in told), told
    pytest.fail(f"{TRIES} measurements without all their numbers: {told}")
