"""Counts of limits per minute in a minute that does not end during a test."""

from limits.storage import MemoryStorage


class OneMinute(MemoryStorage):
    """Counts every hit in the same minute.

    After the turn of a minute, hits from before it count a little less than one, so that one more than the limit may pass.
    """

    @classmethod
    def sliding_window_keys(cls, key: str, expiry: int, at: float) -> tuple[str, str]:
        """See SlidingWindowCounterSupport.sliding_window_keys."""
        return super().sliding_window_keys(key, expiry, 0.0)
