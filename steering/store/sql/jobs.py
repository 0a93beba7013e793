"""Job records, their outputs and the servers that run jobs, on a database."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

from sqlalchemy import ColumnElement, Double, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from steering.errors import StoreCorrupt
from steering.namespaces import SHARED, visible_from
from steering.store.base import JobPage, JobRecord, JobStore, Writer
from steering.store.formats.serialization import (
    INTERRUPTED,
    JOB_ID,
    UNFINISHED,
    check_job,
    job_not_found,
    read_record,
    write_record,
)
from steering.store.governance import NOBODY, OutputStore, Owner, Renewal, ServerStore
from steering.store.rules import now, values_of
from steering.store.sql.database import AnyRow, NamespacePart, StorePart, note_change, upsert
from steering.store.sql.links import check_storage
from steering.store.sql.tables import ChangeRow, JobOutputRow, JobRow, ServerRow, columns_of
from steering.strict_json import dump_json
from steering.threads import run_in_thread

COLUMNS = columns_of(JobRow, JobRecord)
JSON_FIELDS = ("request", "progress", "result", "error")
LISTED = tuple(column for column in COLUMNS if column.key not in ("request", "result"))
"""Columns of a listing: all but those that may be large."""
SMALL = 64 * 1024
"""Characters of a result below which it is parsed on the event loop: starting a thread takes longer."""


@final
class SqlJobs(NamespacePart, JobStore):
    """The JobStore on a database."""

    async def put(self, job: JobRecord) -> JobRecord:
        """See JobStore.put."""
        values = values_of(check_job(job), JobRecord)
        values |= {name: write_record(values[name], name) for name in JSON_FIELDS}

        async def save(connection: AsyncConnection) -> JobRecord:
            # The id of another namespace's job is refused by the unique constraint.
            key = {"namespace": self._namespace, "id": job.id}
            before = (await connection.execute(select(*COLUMNS).filter_by(**key))).first()
            if before is not None and before.status not in UNFINISHED:
                return _from_row(before)
            size = sum(len(values[name] or "") for name in ("request", "result"))
            if before is None:  # the result of a job that ran is stored in any case, and counts against what comes next
                await check_storage(connection, self._namespace, self._writer, size)
            made = now() if before is None else before.created_at
            labels: dict[str, Any] = {"created_at": made, "updated_at": now(), "namespace": self._namespace}
            await connection.run_sync(upsert, JobRow, key, {**values, **labels, "size": size})
            return replace(job, **labels)

        return await self._database.write(save)

    async def get(self, job_id: str) -> JobRecord:
        """See JobStore.get."""
        query = select(*COLUMNS).where(self._visible(), JobRow.id == job_id)
        rows = await self._database.rows(query) if JOB_ID.fullmatch(job_id) else []
        if not rows:
            raise job_not_found(job_id)
        (row,) = rows
        return _from_row(row) if len(row.result or "") <= SMALL else await run_in_thread(_from_row, row)

    async def find(self, limit: int = 50, cursor: str | None = None) -> JobPage:
        """See JobStore.find."""
        query = select(*LISTED).where(self._visible())
        rows, following = await self._database.newest(query, JobRow.position, "job", limit, cursor)
        jobs, damaged = list[JobRecord](), list[str]()
        for row in rows:
            try:
                jobs.append(_from_row(row))
            except StoreCorrupt:
                damaged.append(row.id)
        return JobPage(tuple(jobs), following, tuple(damaged))

    def _visible(self) -> ColumnElement[bool]:
        """Jobs of `shared` are seen by the key that submitted them, and by whom no key is named for."""
        visible = JobRow.namespace.in_(visible_from(self._namespace))
        if not self._writer.key:
            return visible
        return visible & ((JobRow.namespace != SHARED) | (JobRow.created_by == self._writer.key))


def _from_row(row: AnyRow) -> JobRecord:
    """Reads a record from COLUMNS or from LISTED."""
    values = {name: value for name, value in row._mapping.items() if name != "position"}
    read = {name: read_record(values[name], f"job {row.id}") for name in JSON_FIELDS if name in values}
    return JobRecord(**{**values, **read})


@final
class SqlOutputs(StorePart, OutputStore):
    """The OutputStore on a database."""

    async def append(self, output_id: str, part: int, content: str, owner: Owner = NOBODY) -> None:
        """See OutputStore.append."""
        size = len(content.encode())
        labels = {"created_by": owner.key, "namespace": owner.namespace, "size": size}
        values = {"output_id": output_id, "part": part, "created_at": now(), "content": content, **labels}

        async def add(connection: AsyncConnection) -> None:
            writer = Writer(owner.key, owner.max_bytes)
            await check_storage(connection, owner.namespace, writer, size)
            await connection.execute(insert(JobOutputRow).values(values))

        await self._database.write(add)

    async def read(self, output_id: str, part: int) -> str | None:
        """See OutputStore.read."""
        query = select(JobOutputRow.content).where(JobOutputRow.output_id == output_id, JobOutputRow.part == part)
        rows = await self._database.rows(query)
        return rows[0].content if rows else None

    async def prune(self, before: str) -> int:
        """See OutputStore.prune."""
        return await self._database.change(delete(JobOutputRow).where(JobOutputRow.created_at < before), when_full=True)


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


@final
class SqlServers(StorePart, ServerStore):
    """The ServerStore on a database."""

    async def renew(self, server: str, seconds: float, progress: Mapping[str, Mapping[str, Any]]) -> Renewal:
        """See ServerStore.renew."""
        written = {job_id: write_record(one, "progress") for job_id, one in progress.items() if one}

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

        return await self._database.write(extend, when_full=True)

    async def release(self, server: str) -> None:
        """See ServerStore.release."""
        await self._database.change(delete(ServerRow).where(ServerRow.id == server), when_full=True)

    async def request_cancel(self, job_id: str) -> None:
        """See ServerStore.request_cancel."""
        if not JOB_ID.fullmatch(job_id):
            return

        async def mark(connection: AsyncConnection) -> None:
            unfinished = (JobRow.id == job_id, JobRow.status.in_(UNFINISHED))
            marked = await connection.execute(update(JobRow).where(*unfinished).values(cancel_requested=True))
            if marked.rowcount:
                await connection.run_sync(note_change, "jobs")

        await self._database.write(mark, when_full=True)

    async def request_cancel_of(self, key: str) -> int:
        """See ServerStore.request_cancel_of."""

        async def mark(connection: AsyncConnection) -> int:
            unfinished = (JobRow.created_by == key, JobRow.status.in_(UNFINISHED))
            marked = await connection.execute(update(JobRow).where(*unfinished).values(cancel_requested=True))
            if marked.rowcount:
                await connection.run_sync(note_change, "jobs")
            return marked.rowcount

        return await self._database.write(mark)

    async def prune_jobs(self, before: str) -> int:
        """See ServerStore.prune_jobs."""
        old = (JobRow.status.not_in(UNFINISHED), JobRow.updated_at < before)
        return await self._database.change(delete(JobRow).where(*old), when_full=True)

    async def changes(self) -> Mapping[str, int]:
        """See ServerStore.changes."""
        return {row[0]: row[1] for row in await self._database.rows(select(ChangeRow.topic, ChangeRow.count))}
