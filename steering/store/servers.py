"""Servers: the servers of one database, their leases, and the cancellation of jobs that run on another one."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Double, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from steering.schemas.resources import JobProgress
from steering.store.database import Database, note_change, upsert
from steering.store.records import INTERRUPTED, RECORD_ID, UNFINISHED, Renewal, now
from steering.store.tables import ChangeRow, JobRow, ServerRow
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


@dataclass(eq=False)
class Servers:
    """The servers of one database. Lease times are compared with the clock of the database, never with a server's."""

    database: Database

    async def renew(self, server: str, seconds: float, progress: Mapping[str, JobProgress]) -> Renewal:
        """Extends the lease of a server and stores the progress of its jobs, by id.

        Unfinished jobs whose owner has no lease, because it died or cannot reach the database, become `failed` with the
        code `interrupted`. Jobs in `progress` that may not go on are returned.
        """
        written = {job_id: dump_json(made.model_dump(), "progress") for job_id, made in progress.items()}

        async def extend(connection: AsyncConnection) -> Renewal:
            lease = {"lease_until": database_time() + seconds}
            await connection.run_sync(upsert, ServerRow, {"id": server}, lease, started_at=now())
            await connection.execute(delete(ServerRow).where(ServerRow.lease_until <= database_time()))
            for job_id, text in written.items():
                own = (JobRow.id == job_id, JobRow.owner == server, JobRow.status.in_(UNFINISHED))
                await connection.execute(update(JobRow).where(*own).values(progress=text))
            orphaned = (JobRow.status.in_(UNFINISHED), JobRow.owner.not_in(select(ServerRow.id)))
            failed = {"status": "failed", "error": dump_json(INTERRUPTED, "error"), "updated_at": now()}
            interrupted = await connection.execute(update(JobRow).where(*orphaned).values(failed))
            must_end = JobRow.cancel_requested | JobRow.status.not_in(UNFINISHED)
            ended = await connection.scalars(select(JobRow.id).where(JobRow.id.in_(list(progress)), must_end))
            servers = await connection.scalar(select(func.count()).select_from(ServerRow))
            return Renewal(frozenset(ended), interrupted.rowcount, servers or 1)

        return await self.database.write(extend, when_full=True)

    async def release(self, server: str) -> None:
        """Ends the lease of a server that stops, so that others need not wait for it."""
        await self.database.change(delete(ServerRow).where(ServerRow.id == server), when_full=True)

    async def request_cancel(self, job_id: str) -> None:
        """Asks the owner of an unfinished job to cancel it. A job that has ended or does not exist is unchanged."""
        if RECORD_ID.fullmatch(job_id):
            await self._request_cancel(JobRow.id == job_id)

    async def request_cancel_of(self, key: str) -> int:
        """Asks the owners of all unfinished jobs that a key submitted to cancel them; returns how many they are."""
        return await self._request_cancel(JobRow.created_by == key)

    async def _request_cancel(self, chosen: ColumnElement[bool]) -> int:
        async def mark(connection: AsyncConnection) -> int:
            unfinished = update(JobRow).where(chosen, JobRow.status.in_(UNFINISHED))
            marked = await connection.execute(unfinished.values(cancel_requested=True))
            if marked.rowcount:
                await connection.run_sync(note_change, "jobs")
            return marked.rowcount

        return await self.database.write(mark, when_full=True)

    async def prune_jobs(self, before: str) -> int:
        """Deletes ended jobs that last changed before a time; returns how many."""
        old = (JobRow.status.not_in(UNFINISHED), JobRow.updated_at < before)
        return await self.database.change(delete(JobRow).where(*old), when_full=True)

    async def changes(self) -> Mapping[str, int]:
        """Returns how often each topic has changed. One small read: servers compare it with the last one."""
        return {row[0]: row[1] for row in await self.database.rows(select(ChangeRow.topic, ChangeRow.count))}
