"""Synchronization: keeps a server in step with the other servers on its database, and the database free of old records."""

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import structlog

from app.policy.keys import utc_text
from app.settings import Settings
from steering.errors import SteeringError
from steering.store.base import Store

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.5
"""Pause between two reads of the counters of changes."""
REFRESH_SECONDS = 5.0
"""Pause between two reads of everything: what the counters do not cover (the key file), and reads that failed."""
PRUNE_SECONDS = 86_400.0
RENEWALS_PER_LEASE = 3

Refresh: TypeAlias = Callable[[], Awaitable[None]]
"""Reads something again. It logs a failure of the store and keeps what it had."""


def new_server_id() -> str:
    """Returns an id for this start of a server: the name of the machine and random digits."""
    return f"{socket.gethostname()[:40]}-{secrets.token_hex(4)}"


class Synchronization:
    """Reads what other servers changed within POLL_SECONDS, and renews the lease that says that this server lives."""

    def __init__(self, store: Store, settings: Settings, renew: Refresh, **refreshes: Refresh) -> None:
        """refreshes: what to do when a topic has changed (`steering.store.governance.Topic`)."""
        self._store, self._settings = store, settings
        self._refreshes, self._renew = refreshes, renew
        self._seen: Mapping[str, int] = {}

    async def start(self) -> None:
        """Remembers the counters before anything is read, so that no later change is missed; prunes. Raises StoreUnavailable."""
        self._seen = await self._store.servers.changes()
        await prune(self._store, self._settings)

    async def run(self) -> None:
        """Runs until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_repeat(self._poll, POLL_SECONDS))
            tasks.create_task(_repeat(self._refresh_all, REFRESH_SECONDS))
            tasks.create_task(_repeat(self._renew, self._settings.lease_seconds / RENEWALS_PER_LEASE))
            tasks.create_task(_repeat(lambda: prune(self._store, self._settings), PRUNE_SECONDS))

    async def _poll(self) -> None:
        changes = await self._store.servers.changes()
        seen, self._seen = self._seen, changes
        for topic, refresh in self._refreshes.items():
            if changes.get(topic) != seen.get(topic):
                await refresh()

    async def _refresh_all(self) -> None:
        for refresh in self._refreshes.values():
            await refresh()


async def _repeat(work: Refresh, seconds: float) -> None:
    """Runs something again and again, whatever it raises. A store that fails is logged when it begins and when it ends."""
    failing = False
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except SteeringError as error:
            if not failing:
                log.warning("database_not_reached", code=error.code, reason=error.message)
            failing = True
        except Exception:
            log.exception("synchronization_failed")
        else:
            if failing:
                log.info("database_reached_again")
            failing = False


async def prune(store: Store, settings: Settings) -> None:
    """Deletes old entries of the audit log, old jobs, old results of batches and old links."""
    try:
        await store.audit.prune(days_ago(settings.audit_days))
        await store.servers.prune_jobs(days_ago(settings.job_days))
        await store.outputs.prune(days_ago(settings.output_days))
        await store.prune_links(days_ago(settings.link_days))
    except SteeringError as error:
        log.warning("database_not_pruned", code=error.code)


def days_ago(days: int) -> str:
    """Returns the time so many days ago, as the store writes it."""
    return utc_text(datetime.now(UTC) - timedelta(days=days))
