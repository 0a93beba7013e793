"""The time as stores write it."""

from datetime import UTC, datetime


def now() -> str:
    """UTC in ISO 8601 with microseconds, as in 2025-01-31T12:00:00.000000Z: of one length, so it sorts as text."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
