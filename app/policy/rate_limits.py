"""Limits of one key: requests and tokens per minute, requests and rows of the batch at once."""

from collections import Counter, deque
from collections.abc import Callable
from math import inf
from time import monotonic

from cachetools import TTLCache

from app.errors import RateLimited
from app.policy.keys import Key
from steering.errors import LimitExceeded

SECONDS = 60


def share(limit: int, servers: int) -> int:
    """Returns what one of several servers allows of a limit: an equal part, rounded up."""
    return -(-limit // servers)


class _Minute:
    """What was used in the last 60 seconds, counted by the second, so that memory does not grow with what is counted."""

    def __init__(self) -> None:
        self._spent: deque[list[int]] = deque()
        """[second, what was used in it], oldest first."""

    def hit(self, cost: int, allowed: int, now: float) -> float:
        """Counts what is used now and returns 0, or returns the seconds after which it would fit, and counts nothing."""
        while self._spent and self._spent[0][0] + SECONDS + 1 <= now:
            self._spent.popleft()
        excess = sum(used for _, used in self._spent) + cost - allowed
        for second, used in self._spent:
            if excess <= 0:
                break
            excess -= used
            if excess <= 0:
                return second + SECONDS + 1 - now
        if not self._spent or self._spent[-1][0] != int(now):
            self._spent.append([int(now), 0])
        self._spent[-1][1] += cost
        return 0.0


class RateLimits:
    """Counts what each key uses. In no 60 seconds a key uses more than its limit.

    servers: how many run on the database. Each allows an equal share, so a limit holds without any exchange of counts.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._minutes: TTLCache[tuple[str, str], _Minute] = TTLCache(inf, SECONDS + 1, clock)
        self._running: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self.servers = 1

    def rows_of(self, key: Key) -> "KeyRows":
        """Returns what counts the rows of a key."""
        return KeyRows(self._rows, key, self.servers, self._where())

    def admit(self, key: Key) -> Callable[[], None]:
        """Counts one request; returns what ends it. Raises RateLimited."""
        if key.limits.concurrency is not None:
            most = share(key.limits.concurrency, self.servers)
            if self._running[key.name] >= most:
                use = f"this key may run {most} requests at once{self._where()}"
                raise RateLimited(use, limit="concurrency", retry_after=1.0)
        if key.limits.requests_per_minute is not None:
            self._hit(key.limits.requests_per_minute, key, "requests", 1)
        self._running[key.name] += 1
        return lambda: _give_back(self._running, key, 1)

    def charge_tokens(self, key: Key, tokens: int) -> None:
        """Counts the tokens that a request may take: its prompt and what it may generate. Raises RateLimited."""
        if key.limits.tokens_per_minute is not None:
            self._hit(key.limits.tokens_per_minute, key, "tokens", tokens)

    def _hit(self, limit: int, key: Key, what: str, cost: int) -> None:
        allowed = share(limit, self.servers)
        use = f"this key may use {allowed} {what} a minute{self._where()}"
        if cost > allowed:
            raise RateLimited(f"this request takes {cost} {what}; {use}", limit=what, retry_after=60.0, never=True)
        minute = self._minutes.get((key.name, what)) or _Minute()
        if wait := minute.hit(cost, allowed, self._clock()):
            raise RateLimited(use, limit=what, retry_after=max(wait, 1.0))
        self._minutes[key.name, what] = minute  # kept for a minute from its last use

    def _where(self) -> str:
        return "" if self.servers == 1 else f" on each of {self.servers} servers"


class KeyRows:
    """Rows of the batch that the running requests of one key have taken."""

    def __init__(self, counts: Counter[str], key: Key, servers: int, where: str) -> None:
        self._counts, self._key, self._where = counts, key, where
        self._limit = None if key.limits.rows is None else share(key.limits.rows, servers)

    def take(self, rows: int, total: int) -> None:
        """Counts rows of a request that will have `total`.

        Raises LimitExceeded for more than the key may ever have, RateLimited for more than it may have now.
        """
        limit = self._limit
        if limit is not None and total > limit:
            use = f"this key may use {limit}{self._where}"
            raise LimitExceeded(f"this request takes {total} rows at once; {use}", param="n")
        if limit is not None and self._counts[self._key.name] + rows > limit:
            use = f"this key may use {limit} rows at once{self._where}"
            raise RateLimited(use, limit="rows", retry_after=1.0)
        self._counts[self._key.name] += rows

    def release(self, rows: int) -> None:
        """Returns rows."""
        _give_back(self._counts, self._key, rows)


def _give_back(counts: Counter[str], key: Key, count: int) -> None:
    """Lowers the count of a key, and forgets a key that uses nothing: keys come and go."""
    counts[key.name] -= count
    if not counts[key.name]:
        del counts[key.name]
