"""UTC instants as the API writes them."""

from datetime import UTC, datetime


def text(instant: datetime) -> str:
    """RFC 3339 in UTC with milliseconds, as custom resources keep them."""
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def whole_seconds(instant: datetime) -> str:
    """RFC 3339 in UTC without a fraction: what metav1.Time, so every condition, allows."""
    return instant.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def parse(written: str | None) -> datetime | None:
    """The instant that a field of the API holds; None for an empty field."""
    if not written:
        return None
    found = datetime.fromisoformat(written)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
