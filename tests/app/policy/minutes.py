"""Counts of limits per minute in a minute that does not end during a test."""

from limits.storage import MemoryStorage


class OneMinute(MemoryStorage):
    """Counts every hit in the same minute.

    Of two hits around the turn of a minute the first counts a little less, so that a limit of few lets one more pass.
    """

    @classmethod
    def sliding_window_keys(cls, key: str, expiry: int, at: float) -> tuple[str, str]:
        """See SlidingWindowCounterSupport.sliding_window_keys."""
        return super().sliding_window_keys(key, expiry, 0.0)
