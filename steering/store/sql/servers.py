"""SqlServers: the ServerStore on a database."""

from collections.abc import Mapping
from typing import Any, final

from sqlalchemy import ColumnElement, Double, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from steering.store.formats.serialization import INTERRUPTED, UNFINISHED, is_job_id, write_record
from steering.store.rules import now
from steering.store.servers import Renewal, Topic
from steering.store.sql.database import Database
from steering.store.sql.tables import ChangeRow, JobRow, ServerRow
from steering.strict_json import dump_json


class database_time(FunctionElement[float]):  # noqa: N801 - a SQL function
    """The clock of the database in seconds since 1970. It goes on inside a transaction."""

    type = Double()
    inherit_cache = True


@compiles(database_time, "sqlite")
def _sqlite_time(_: object, __: SQLCompiler, **___: object) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(database_time, "postgresql")
def _postgresql_time(_: object, __: SQLCompiler, **___: object) -> str:
    return "EXTRACT(EPOCH FROM clock_timestamp())::float8"


async def note_change(connection: AsyncConnection, topic: Topic) -> None:
    """Counts a change in the transaction that makes it. Writers are serialized, so no count is lost."""
    counted = await connection.execute(
        update(ChangeRow).where(ChangeRow.topic == topic).values(count=ChangeRow.count + 1)
    )
    if counted.rowcount == 0:
        await connection.execute(insert(ChangeRow).values(topic=topic, count=1))


@final
class SqlServers:
    """See `steering.store.servers.ServerStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def renew(self, server: str, seconds: float, progress: Mapping[str, Mapping[str, Any]]) -> Renewal:
        """See ServerStore.renew."""
        written = {job_id: write_record(one, "progress") for job_id, one in progress.items() if one}

        async def extend(connection: AsyncConnection) -> Renewal:
            await _extend(connection, server, seconds)
            for job_id, text in written.items():
                own = (JobRow.id == job_id, JobRow.owner == server, JobRow.status.in_(UNFINISHED))
                await connection.execute(update(JobRow).where(*own).values(progress=text))
            interrupted = await _interrupt(connection)
            found = await connection.execute(select(JobRow.id).where(JobRow.id.in_(list(progress)), _must_end()))
            ended = frozenset(row[0] for row in found)
            servers = await connection.scalar(select(func.count()).select_from(ServerRow))
            return Renewal(ended, interrupted, servers or 1)

        return await self._database.write(extend)

    async def release(self, server: str) -> None:
        """See ServerStore.release."""
        await self._database.change(delete(ServerRow).where(ServerRow.id == server))

    async def request_cancel(self, job_id: str) -> None:
        """See ServerStore.request_cancel."""
        if not is_job_id(job_id):
            return

        async def mark(connection: AsyncConnection) -> None:
            unfinished = (JobRow.id == job_id, JobRow.status.in_(UNFINISHED))
            marked = await connection.execute(update(JobRow).where(*unfinished).values(cancel_requested=True))
            if marked.rowcount:
                await note_change(connection, "jobs")

        await self._database.write(mark)

    async def prune_jobs(self, before: str) -> int:
        """See ServerStore.prune_jobs."""
        old = (JobRow.status.not_in(UNFINISHED), JobRow.updated_at < before)
        return await self._database.change(delete(JobRow).where(*old))

    async def changes(self) -> Mapping[str, int]:
        """See ServerStore.changes."""
        return {row[0]: row[1] for row in await self._database.rows(select(ChangeRow.topic, ChangeRow.count))}


def _must_end() -> ColumnElement[bool]:
    return JobRow.cancel_requested | JobRow.status.not_in(UNFINISHED)


async def _extend(connection: AsyncConnection, server: str, seconds: float) -> None:
    """Sets the end of a lease, and removes the servers whose lease has ended."""
    until = database_time() + seconds
    extended = await connection.execute(update(ServerRow).where(ServerRow.id == server).values(lease_until=until))
    if extended.rowcount == 0:
        await connection.execute(insert(ServerRow).values(id=server, lease_until=until, started_at=now()))
    await connection.execute(delete(ServerRow).where(ServerRow.lease_until <= database_time()))


async def _interrupt(connection: AsyncConnection) -> int:
    """Marks the unfinished jobs of servers without a lease."""
    orphaned = (JobRow.status.in_(UNFINISHED), JobRow.owner.not_in(select(ServerRow.id)))
    values = {"status": "failed", "error": dump_json(INTERRUPTED, "error"), "updated_at": now()}
    return (await connection.execute(update(JobRow).where(*orphaned).values(values))).rowcount
