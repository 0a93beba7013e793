"""Keeps a server in step with the other servers on its database, and the database free of old records."""

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeAlias, TypeVar

import structlog

from app.core.settings import Settings
from app.core.telemetry import Metrics
from steering.errors import SteeringError
from steering.store.pruning import days_ago
from steering.store.store import Store

log = structlog.get_logger(__name__)

T = TypeVar("T")

POLL_SECONDS = 0.5  # pause between two reads of the counters of changes
REFRESH_SECONDS = 5.0  # pause between two reads of everything: what the counters do not cover (the key file)
PRUNE_SECONDS = 86_400.0
RENEWALS_PER_LEASE = 3
Refresh: TypeAlias = Callable[[], Awaitable[None]]
"""Reads something again. When the store fails it raises and keeps what it had."""


class Changes:
    """Changes come into force here in the order in which they were stored, and what was read before one never replaces it.

    A write that waits for the database holds up the writes behind it and no read. A read that ends while a write is under way may
    know a later change of another server than that write; then the next read, at most REFRESH_SECONDS later, brings it.
    """

    def __init__(self) -> None:
        self._writing = asyncio.Lock()
        self._made = 0

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """Surrounds a write to the store and, with nothing awaited after it, the same change in memory."""
        async with self._writing:
            yield
            self._made += 1

    async def read(self, read: Callable[[], Awaitable[T]]) -> T:
        """Returns what `read` returns; calls it again where a change was made meanwhile. To be used before anything is awaited."""
        while True:
            made, found = self._made, await read()
            if made == self._made:
                return found


def new_server_id() -> str:
    """Returns an id for this start of a server: the name of the machine and random digits."""
    return f"{socket.gethostname()[:40]}-{secrets.token_hex(4)}"


class Synchronization:
    """Reads what other servers changed within POLL_SECONDS, and renews the lease that says that this server lives.

    Each topic, and everything that writes, runs in a loop of its own, so that one that waits for the database holds up no other.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        renew: Refresh,
        store_use: Refresh,
        metrics: Metrics,
        refresh_seconds: float = REFRESH_SECONDS,
        **refreshes: Refresh,
    ) -> None:
        """`store_use` stores when keys were used; each of `refreshes` reads a topic again (`steering.store.records.Topic`)."""
        self._store, self._refreshes, self._refresh_seconds = store, refreshes, refresh_seconds
        self._metrics = metrics
        self._writes = {
            "renew": (renew, settings.lease_seconds / RENEWALS_PER_LEASE),
            "store_use": (store_use, REFRESH_SECONDS),
            "prune": (lambda: prune(store, settings), PRUNE_SECONDS),
        }
        self._counts: Mapping[str, int] = {}
        self._read: dict[str, int] = {}
        """The count of each topic before it was last read; at first none, so that none is missed."""
        self._changed = {topic: asyncio.Event() for topic in refreshes}

    async def run(self) -> None:
        """Runs until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat("poll", self._poll, POLL_SECONDS))
            for name, (write, seconds) in self._writes.items():
                tasks.create_task(self._repeat(name, write, seconds))
            for topic, refresh in self._refreshes.items():
                tasks.create_task(self._repeat(topic, partial(self._follow, topic, refresh), 0.0))

    async def _poll(self) -> None:
        """Wakes the topics that have changed since they were read, and those whose last read failed."""
        started = time.perf_counter()
        self._counts = await self._store.servers.changes()
        self._metrics.database_seconds.observe(time.perf_counter() - started)
        for topic, changed in self._changed.items():
            if self._counts.get(topic, 0) != self._read.get(topic):
                changed.set()

    async def _follow(self, topic: str, refresh: Refresh) -> None:
        """Waits for a change of a topic, at most `refresh_seconds`, and reads it again."""
        changed = self._changed[topic]
        with suppress(TimeoutError):
            async with asyncio.timeout(self._refresh_seconds):
                await changed.wait()
        changed.clear()
        count = self._counts.get(topic, 0)
        await refresh()
        self._read[topic] = count

    async def _repeat(self, name: str, work: Refresh, seconds: float) -> None:
        """Runs something again and again, whatever it raises. A store that fails is logged when it begins and when it ends."""
        failing = False
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except SteeringError as error:
                if not failing:
                    log.warning("database_not_reached", work=name, code=error.code, reason=error.message)
                failing = True
                self._metrics.database_failures.labels(name).inc()
            except Exception:
                log.exception("synchronization_failed", work=name)
            else:
                if failing:
                    log.info("database_reached_again", work=name)
                failing = False


async def prune(store: Store, settings: Settings) -> None:
    """Deletes old entries of the audit log, old jobs, old results of batches and old links."""
    try:
        await store.prune("audit", days_ago(settings.audit_days))
        await store.prune("jobs", days_ago(settings.job_days))
        await store.prune("job_outputs", days_ago(settings.output_days))
        await store.prune("links", days_ago(settings.link_days))
    except SteeringError as error:
        log.warning("database_not_pruned", code=error.code)
