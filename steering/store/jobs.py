"""Jobs, which outlive a restart of the server, their outputs, and the servers that run them."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Double, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from steering.errors import JobNotFound, StoreCorrupt
from steering.namespaces import SHARED, visible_from
from steering.schemas.resources import UNFINISHED, JobProgress
from steering.store.database import UNLIMITED, AnyRow, Namespaced, Stored, Writer, check_storage, note_change, upsert
from steering.store.records import (
    INTERRUPTED,
    RECORD_ID,
    JobRecord,
    Page,
    Renewal,
    now,
    read_record,
    read_valid,
    utc_text,
    write_record,
)
from steering.store.tables import ChangeRow, JobOutputRow, JobRow, ServerRow
from steering.strict_json import dump_json
from steering.threads import run_in_thread

_FIELDS = tuple(name for name in JobRecord.model_fields if name != "subject")  # which is read from the request
_COLUMNS = tuple(getattr(JobRow, name) for name in _FIELDS)
_LISTED = tuple(column for column in _COLUMNS if column.key not in ("request", "result"))
"""Columns of a listing: all but those that may be large."""
_JSON_FIELDS = ("request", "progress", "result", "error")
SMALL = 64 * 1024
"""Characters of a result below which it is parsed on the event loop: starting a thread takes longer."""


class Jobs(Namespaced):
    """The jobs that a namespace sees: its own and those of `shared`."""

    async def put(self, job: JobRecord) -> JobRecord:
        """Creates or replaces the record of that id, and returns the stored record. A record that has ended stays as it is, so
        that a server that lost its lease does not end it again. Raises InvalidRequest, and StorageFull for a new job."""
        job.check()
        values: dict[str, Any] = {name: getattr(job, name) for name in _FIELDS}
        values |= {"progress": job.progress.model_dump(), "error": job.error and job.error.model_dump()}
        values |= {name: write_record(values[name], name) for name in _JSON_FIELDS}
        size = sum(len(values[name] or "") for name in ("request", "result"))

        async def save(connection: AsyncConnection) -> JobRecord:
            # The id of another namespace's job is refused by the unique constraint.
            key = {"namespace": self.namespace, "id": job.id}
            before = (await connection.execute(select(*_COLUMNS).filter_by(**key))).first()
            if before is not None and before.status not in UNFINISHED:
                return _from_row(before)
            if before is None:  # the result of a job that ran is stored in any case, and counts against what comes next
                await check_storage(connection, self.namespace, self.writer, size)
            made = now() if before is None else before.created_at
            labels = {"created_at": made, "updated_at": now(), "namespace": self.namespace}
            await connection.run_sync(upsert, JobRow, key, {**values, **labels, "size": size})
            return job.model_copy(update=labels)

        return await self.database.write(save)

    async def get(self, job_id: str) -> JobRecord:
        """Returns one record. Raises JobNotFound, StoreCorrupt."""
        query = select(*_COLUMNS).where(self._visible(), JobRow.id == job_id)
        rows = await self.database.rows(query) if RECORD_ID.fullmatch(job_id) else []
        if not rows:
            raise JobNotFound(f"there is no job {job_id[:80]!r}", param="job")
        (row,) = rows
        return _from_row(row) if len(row.result or "") <= SMALL else await run_in_thread(_from_row, row)

    async def find(self, limit: int = 50, cursor: str | None = None) -> Page[JobRecord]:
        """Lists jobs without requests and results, newest first."""
        query = select(*_LISTED).where(self._visible())
        rows, following = await self.database.page(query, JobRow.position, "job", limit, cursor)
        jobs, damaged = read_valid(_from_row, rows)
        return Page(jobs, following, tuple(row.id for row in damaged))

    def _visible(self) -> ColumnElement[bool]:
        """Jobs of `shared` are seen by the key that submitted them, and where the writer has no name."""
        visible = JobRow.namespace.in_(visible_from(self.namespace))
        if not self.writer.key:
            return visible
        return visible & ((JobRow.namespace != SHARED) | (JobRow.created_by == self.writer.key))


def _from_row(row: AnyRow) -> JobRecord:
    """Reads a record from _COLUMNS or from _LISTED. Raises StoreCorrupt."""
    where = f"job {row.id}"
    values = dict(row._mapping)
    values |= {name: read_record(values[name], where) for name in _JSON_FIELDS if name in values}
    try:
        return JobRecord.model_validate(values)
    except ValidationError:
        raise StoreCorrupt(f"the record stored in {where} cannot be read") from None


class Outputs(Stored):
    """Outputs of jobs: texts in numbered parts, such as the lines of a batch, written one after the other and deleted by age."""

    async def append(
        self, output_id: str, part: int, content: str, namespace: str = SHARED, writer: Writer = UNLIMITED
    ) -> None:
        """Stores part `part` (0, 1, ...) of an output with the current time; it is never changed. The same content again is no
        error, because the answer of the first write may have been lost. Raises StorageFull."""
        size = len(content.encode())
        labels = {"created_by": writer.key, "namespace": namespace, "size": size}
        values = {"output_id": output_id, "part": part, "created_at": now(), "content": content, **labels}

        async def add(connection: AsyncConnection) -> None:
            of_part = (JobOutputRow.output_id == output_id, JobOutputRow.part == part)
            if await connection.scalar(select(JobOutputRow.content).where(*of_part)) == content:
                return
            await check_storage(connection, namespace, writer, size)
            await connection.execute(insert(JobOutputRow).values(values))

        await self.database.write(add)

    async def read(self, output_id: str, part: int) -> str | None:
        """Returns one part, None where there is none."""
        query = select(JobOutputRow.content).where(JobOutputRow.output_id == output_id, JobOutputRow.part == part)
        rows = await self.database.rows(query)
        return rows[0].content if rows else None


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


class Servers(Stored):
    """The servers of a database, their leases by the database's clock, and the cancellation of jobs on another one."""

    async def renew(self, server: str, seconds: float, progress: Mapping[str, JobProgress]) -> Renewal:
        """Extends the lease of a server and stores the progress of its jobs, by id. Unfinished jobs whose owner has no lease,
        because it died or cannot reach the database, become `failed` with the code `interrupted`. A server whose own lease has
        ended gives the others another one: perhaps nobody could reach the database. Jobs of this server without progress here,
        which it does not know, become `failed` when they have not changed for a lease."""
        # before this waits for the database: a job that begins meanwhile has no progress here either
        before = utc_text(datetime.now(UTC) - timedelta(seconds=seconds))
        written = {job_id: dump_json(made.model_dump(), "progress") for job_id, made in progress.items()}

        async def extend(connection: AsyncConnection) -> Renewal:
            lease = {"lease_until": database_time() + seconds}
            ended_leases = ServerRow.lease_until <= database_time()
            away = await connection.scalar(select(ended_leases).where(ServerRow.id == server))
            await connection.run_sync(upsert, ServerRow, {"id": server}, lease, started_at=now())
            others = update(ServerRow).values(lease) if away else delete(ServerRow)
            await connection.execute(others.where(ended_leases))
            for job_id, text in written.items():
                own = (JobRow.id == job_id, JobRow.owner == server, JobRow.status.in_(UNFINISHED))
                await connection.execute(update(JobRow).where(*own).values(progress=text))
            unknown = (JobRow.owner == server) & JobRow.id.not_in(list(progress)) & (JobRow.updated_at < before)
            orphaned = JobRow.status.in_(UNFINISHED) & (JobRow.owner.not_in(select(ServerRow.id)) | unknown)
            failed = {"status": "failed", "error": dump_json(INTERRUPTED, "error"), "updated_at": now()}
            interrupted = await connection.execute(update(JobRow).where(orphaned).values(failed))
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

    async def changes(self) -> Mapping[str, int]:
        """Returns how often each topic has changed. One small read: servers compare it with the last one."""
        return {row[0]: row[1] for row in await self.database.rows(select(ChangeRow.topic, ChangeRow.count))}
