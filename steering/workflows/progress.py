"""Defines the progress callback of long-running work."""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int, str], None]
"""progress(done, total, message): called on the event loop, often; it must return at once."""


def ignore_progress(done: int, total: int, message: str) -> None:
    """Does nothing; the default of callers that pass no callback."""
