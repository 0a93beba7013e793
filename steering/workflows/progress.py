"""Defines the progress callback of long-running work, and of a part of it."""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int, str], None]
"""progress(done, total, message): called on the event loop, often; it must return at once."""


def ignore_progress(done: int, total: int, message: str) -> None:
    """Does nothing; the default of callers that pass no callback."""


def progress_of_part(progress: Progress, start: int, total: int) -> Progress:
    """Returns the callback of a part of the work, whose steps follow the first `start` of `total`."""
    return lambda done, _, message: progress(start + done, total, message)
