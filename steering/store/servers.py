"""Protocol of what several servers on one database share: leases, the jobs that each owns, and what has changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

Topic: TypeAlias = Literal["keys", "default_steering", "documents", "jobs"]
"""What servers hold in memory and read again when it changes. jobs: the cancellation of a job was requested."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a renewal found. ended: jobs of this server that it must stop, because another server requested their
    cancellation or reported them as interrupted. interrupted: unfinished jobs of other servers that were marked now.
    servers: how many have a lease, this one included."""

    ended: frozenset[str] = frozenset()
    interrupted: int = 0
    servers: int = 1


class ServerStore(Protocol):
    """The servers of one database. Lease times are compared with the clock of the database, never with a server's."""

    async def renew(self, server: str, seconds: float, progress: Mapping[str, Mapping[str, Any]]) -> Renewal:
        """Extends the lease of a server and stores the progress of its jobs, by id.

        Unfinished jobs whose owner has no lease, because it died or cannot reach the database, become `failed` with the
        code `interrupted`. Jobs in `progress` that may not go on are returned.
        """
        ...

    async def release(self, server: str) -> None:
        """Ends the lease of a server that stops, so that others need not wait for it."""
        ...

    async def request_cancel(self, job_id: str) -> None:
        """Asks the owner of an unfinished job to cancel it. A job that has ended or does not exist is unchanged."""
        ...

    async def prune_jobs(self, before: str) -> int:
        """Deletes ended jobs that last changed before a time; returns how many."""
        ...

    async def changes(self) -> Mapping[str, int]:
        """Returns how often each topic has changed. One small read: servers compare it with the last one."""
        ...
