"""Limits of one key: requests and tokens per minute, requests and rows of the batch at once."""

from collections import Counter
from collections.abc import Callable
from time import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from app.errors import RateLimited
from app.policy.keys import Key
from steering.errors import LimitExceeded


class RateLimits:
    """Counts what each key uses. A sliding window of two counters, so that memory does not grow with what is counted."""

    def __init__(self) -> None:
        self._windows = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._running: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()

    def rows_of(self, key: Key) -> "KeyRows":
        """Returns what counts the rows of a key."""
        return KeyRows(self._rows, key)

    def admit(self, key: Key) -> Callable[[], None]:
        """Counts one request; returns what ends it. Raises RateLimited."""
        limits = key.limits
        if limits.concurrency is not None and self._running[key.name] >= limits.concurrency:
            raise RateLimited(f"this key may run {limits.concurrency} requests at once", retry_after=1.0)
        if limits.requests_per_minute is not None:
            self._hit(limits.requests_per_minute, key, "requests", 1)
        self._running[key.name] += 1
        return lambda: self._end(key)

    def charge_tokens(self, key: Key, tokens: int) -> None:
        """Counts the tokens that a request may take: its prompt and what it may generate. Raises RateLimited."""
        if key.limits.tokens_per_minute is not None:
            self._hit(key.limits.tokens_per_minute, key, "tokens", tokens)

    def _end(self, key: Key) -> None:
        self._running[key.name] -= 1
        if not self._running[key.name]:
            del self._running[key.name]

    def _hit(self, limit: int, key: Key, what: str, cost: int) -> None:
        window = RateLimitItemPerMinute(limit)
        if cost > limit:
            message = f"this request takes {cost} {what}; this key may use {limit} a minute"
            raise RateLimited(message, retry_after=60.0, never=True)
        if not self._windows.hit(window, key.name, what, cost=cost):
            reset = self._windows.get_window_stats(window, key.name, what).reset_time
            wait = max(reset - time(), 1.0)
            raise RateLimited(f"this key may use {limit} {what} a minute", retry_after=wait)


class KeyRows:
    """Rows of the batch that the running requests of one key have taken."""

    def __init__(self, counts: Counter[str], key: Key) -> None:
        self._counts, self._key = counts, key

    def take(self, rows: int, total: int) -> None:
        """Counts rows of a request that will have `total`.

        Raises LimitExceeded for more than the key may ever have, RateLimited for more than it may have now.
        """
        limit = self._key.limits.rows
        if limit is not None and total > limit:
            raise LimitExceeded(f"this request takes {total} rows at once; this key may use {limit}", param="n")
        if limit is not None and self._counts[self._key.name] + rows > limit:
            raise RateLimited(f"this key may use {limit} rows at once", retry_after=1.0)
        self._counts[self._key.name] += rows

    def release(self, rows: int) -> None:
        """Returns rows."""
        self._counts[self._key.name] -= rows
        if not self._counts[self._key.name]:
            del self._counts[self._key.name]
