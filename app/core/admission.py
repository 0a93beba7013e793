"""Key: who makes a request, and what that caller may do. Admission control: rows of the batch, bytes of memory, and what each key
may use. What does not fit is refused at once."""

from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import inf
from time import monotonic

from cachetools import TTLCache

from app.core.errors import InsufficientScope, RateLimited
from app.core.settings import SCOPES
from steering.errors import LimitExceeded, OutOfMemory, Overloaded
from steering.namespaces import SHARED
from steering.schemas.base import PageQuery
from steering.schemas.governance import KeyLimitsFields
from steering.schemas.vectors import VersionsQuery
from steering.vectors import check_name


@dataclass(frozen=True, slots=True)
class Key:
    """A caller: a name that is safe to log (never the key), its scopes and limits. `admin` includes every other scope.

    namespace: the one whose vectors, profiles and jobs it makes.
    """

    name: str
    scopes: frozenset[str]
    limits: KeyLimitsFields = field(default_factory=KeyLimitsFields)
    id: str = ""
    namespace: str = SHARED

    def namespace_for(self, asked: str | None) -> str:
        """Returns the namespace of a request, which an admin may name. Raises InsufficientScope, InvalidRequest.

        The answer to others does not depend on what is in the namespace that they named.
        """
        if asked is None or asked == self.namespace:
            return self.namespace
        if "admin" not in self.scopes:
            raise InsufficientScope("only a key with the scope 'admin' may name another namespace", param="namespace")
        return check_name(asked, "namespace")

    def require(self, scope: str) -> None:
        """Raises InsufficientScope unless the key has the scope, or is an admin's."""
        if scope not in self.scopes and "admin" not in self.scopes:
            raise InsufficientScope(
                f"this route needs the scope {scope!r}; this key has {', '.join(sorted(self.scopes))}"
            )


ANONYMOUS = Key("anonymous", frozenset(SCOPES))
"""The caller of a server that never had a key, which listens on a loopback address only."""


def foreign(kind: str, name: str, owner: str, own: str) -> InsufficientScope:
    """Returns the error for changing a thing that a key sees and that belongs to another namespace."""
    return InsufficientScope(
        f"{kind} {name[:80]!r} belongs to namespace {owner!r}; this key changes those of {own!r} only"
    )


SECONDS = 60
SCORED_REQUESTS = 100
"""Requests of POST /v1/score whose tokens (`max_scored_tokens` each) an evaluation of choices, or a training, may read."""


def check_limit(given: int, limit: int, what: str, param: str) -> None:
    """Raises LimitExceeded when more was given than the operator allows."""
    if given > limit:
        raise LimitExceeded(f"{given} {what} given; at most {limit}", param=param)


def page_size(query: PageQuery | VersionsQuery, most: int) -> int:
    """Returns how many entries a page has. `limit` is lowered to what the operator allows where it is the default. Raises LimitExceeded."""
    if "limit" not in query.model_fields_set:
        return min(query.limit, most)
    check_limit(query.limit, most, "entries per page", "limit")
    return query.limit


def share(limit: int, servers: int) -> int:
    """Returns what one of several servers allows of a limit: an equal part, rounded up."""
    return -(-limit // servers)


class _Minute:
    """What was used in the last 60 seconds, counted by the second, so that memory does not grow with what is counted."""

    def __init__(self) -> None:
        self._spent: deque[list[int]] = deque()  # [second, what was used in it], oldest first

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

    def give_back(self, cost: int, counted: float) -> None:
        """Counts no longer what was counted at a time."""
        for used in self._spent:
            if used[0] == int(counted):
                used[1] -= cost


class RateLimits:
    """Counts what each key uses. In no 60 seconds a key uses more than its limit.

    servers: how many servers run on the database. Each allows an equal share, so a limit holds without any exchange of counts.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._minutes: TTLCache[tuple[str, str], _Minute] = TTLCache(inf, SECONDS + 1, clock)
        self._running: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self.servers = 1

    def take_rows(self, key: Key, rows: int, total: int) -> None:
        """Counts rows of the batch for a request that will have `total`.

        Raises LimitExceeded for more than the key may ever have, RateLimited for more than it may have now.
        """
        limit = self.most_rows(key, total)
        if self._rows[key.name] + rows > limit:
            use = f"this key may use {limit} rows at once{self._where()}"
            raise RateLimited(use, limit="rows", retry_after=1.0)
        self._rows[key.name] += rows

    def most_rows(self, key: Key, total: int = 0) -> float:
        """Returns how many rows a key may have here. Raises LimitExceeded for a request that takes more."""
        limit = inf if key.limits.rows is None else share(key.limits.rows, self.servers)
        if total > limit:
            use = f"this key may use {limit}{self._where()}"
            raise LimitExceeded(f"this request takes {total} rows at once; {use}", param="n")
        return limit

    def release_rows(self, key: Key, rows: int) -> None:
        """Returns rows."""
        _give_back(self._rows, key, rows)

    def admit(self, key: Key) -> Callable[[], None]:
        """Counts one request; returns what ends it. Raises RateLimited."""
        if (limit := key.limits.concurrency) is not None:
            most = share(limit, self.servers)
            if self._running[key.name] >= most:
                use = f"this key may run {most} requests at once{self._where()}"
                raise RateLimited(use, limit="concurrency", retry_after=1.0)
        if key.limits.requests_per_minute is not None:
            self._hit(key.limits.requests_per_minute, key, "requests", 1)
        self._running[key.name] += 1
        return lambda: _give_back(self._running, key, 1)

    def charge_tokens(self, key: Key, tokens: int) -> Callable[[], None]:
        """Counts the tokens that a request may take: its prompt and what it may generate. Returns what counts them no longer, for a
        request that is refused after all. Raises RateLimited."""
        if key.limits.tokens_per_minute is None:
            return lambda: None
        return self._hit(key.limits.tokens_per_minute, key, "tokens", tokens)

    def _hit(self, limit: int, key: Key, what: str, cost: int) -> Callable[[], None]:
        allowed = share(limit, self.servers)
        use = f"this key may use {allowed} {what} a minute{self._where()}"
        if cost > allowed:
            raise RateLimited(f"this request takes {cost} {what}; {use}", limit=what, retry_after=60.0, never=True)
        minute, now = self._minutes.get((key.name, what)) or _Minute(), self._clock()
        if wait := minute.hit(cost, allowed, now):
            raise RateLimited(use, limit=what, retry_after=max(wait, 1.0))
        self._minutes[key.name, what] = minute  # kept for a minute from its last use
        return lambda: minute.give_back(cost, now)

    def _where(self) -> str:
        return "" if self.servers == 1 else f" on each of {self.servers} servers"


def _give_back(counts: Counter[str], key: Key, count: int) -> None:
    """Lowers the count of a key, and forgets a key that uses nothing: keys come and go."""
    counts[key.name] -= count
    if not counts[key.name]:
        del counts[key.name]


class Budget:
    """Rows or bytes that all running requests together may reserve. The message of a refusal is `refusal`."""

    def __init__(self, limit: int, refusal: str) -> None:
        self.limit, self._refusal = limit, refusal
        self.reserved = 0

    def reserve(self, size: int) -> None:
        """Reserves rows or bytes. Raises Overloaded when they do not fit now."""
        if self.reserved + size > self.limit:
            raise Overloaded(self._refusal)
        self.reserved += size

    def release(self, size: int) -> None:
        """Returns rows or bytes."""
        self.reserved -= size


class Admission:
    """The rows and the memory that one request has taken from its server.

    key: whose rows `rates` counts, too. None until the key is known.
    closing: what is called when the response has been sent.
    """

    def __init__(self, rows: Budget, memory: Budget, job_memory: Budget, rates: RateLimits) -> None:
        self._budget, self._memory, self._job_memory, self._rates = rows, memory, job_memory, rates
        self._most = memory.limit
        self._rows = self._bytes = 0
        self.key: Key | None = None
        self.closing = ExitStack()

    def apart(self) -> "Admission":
        """Returns a new one, of a part of a job: the request that began the job has been answered by then. It may have the memory that
        jobs cannot keep, so that waiting for it ends."""
        part = Admission(self._budget, self._memory, self._job_memory, self._rates)
        part._most -= self._job_memory.limit
        return part

    def take(self, rows: int) -> None:
        """Raises the number of rows of this request to `rows`. Raises Overloaded, LimitExceeded where the server has never so many, or as
        `take_rows`, and changes nothing."""
        if rows > self._budget.limit:
            most = f"this server has {self._budget.limit} (STEERING_MAX_RUNNING and STEERING_MAX_WAITING)"
            raise LimitExceeded(f"this request takes {rows} rows at once; {most}", param="n")
        wanted = max(rows - self._rows, 0)
        if self.key is not None:
            self._rates.take_rows(self.key, wanted, rows)
        try:
            self._budget.reserve(wanted)
        except Overloaded:
            if self.key is not None:
                self._rates.release_rows(self.key, wanted)
            raise
        self._rows += wanted

    def reserve(self, size: int) -> None:
        """Reserves memory until the response has been sent.

        Raises OutOfMemory where this request alone needs more than it may ever have, Overloaded where others have it.
        """
        wanted, limit = self._bytes + size, self._most
        if wanted > limit:
            allowed = f"running requests may have {limit >> 20} MB (STEERING_MEMORY_MEGABYTES)"
            raise OutOfMemory(f"this request needs {-(-wanted // 2**20)} MB of memory; {allowed}")
        self._memory.reserve(size)
        self._bytes += size

    def keep_for_job(self) -> Callable[[], None]:
        """Keeps the memory of this request for the job that it begins; the function returned gives it back, called once.

        Raises OutOfMemory where it needs more than all jobs may have, Overloaded where those that wait and run have it.
        """
        size, limit = self._bytes, self._job_memory.limit
        if size > limit:
            raise OutOfMemory(f"this job needs {-(-size // 2**20)} MB of memory; jobs may have {limit >> 20} MB")
        self._job_memory.reserve(size)
        self._bytes -= size

        def release() -> None:
            self._job_memory.release(size)
            self._memory.release(size)

        return release

    def release_rows(self) -> None:
        """Returns every row, and keeps the memory."""
        if self.key is not None:
            self._rates.release_rows(self.key, self._rows)
        self._budget.release(self._rows)
        self._rows = 0

    def close(self) -> None:
        """Returns everything. May be called more than once."""
        self.release_rows()
        self._memory.release(self._bytes)
        self._bytes = 0
        self.closing.close()
