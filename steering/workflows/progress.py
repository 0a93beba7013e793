"""How long work says how far it has come."""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int, str], None]
"""progress(done, total, message): called on the event loop, often; it must return at once."""


def silent(done: int, total: int, message: str) -> None:
    """For a caller who does not watch."""
