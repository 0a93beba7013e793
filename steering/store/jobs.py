"""Jobs: the records of jobs, which outlive a restart of the server."""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.errors import JobNotFound, StoreCorrupt
from steering.namespaces import SHARED, visible_from
from steering.store.database import AnyRow, Database, check_storage, upsert
from steering.store.records import RECORD_ID, UNFINISHED, JobPage, JobRecord, Writer, now, read_record, write_record
from steering.store.tables import JobRow
from steering.threads import run_in_thread

_FIELDS = tuple(name for name in JobRecord.model_fields if name != "subject")  # which is read from the request
_COLUMNS = tuple(getattr(JobRow, name) for name in _FIELDS)
_LISTED = tuple(column for column in _COLUMNS if column.key not in ("request", "result"))
"""Columns of a listing: all but those that may be large."""
_JSON_FIELDS = ("request", "progress", "result", "error")
SMALL = 64 * 1024
"""Characters of a result below which it is parsed on the event loop: starting a thread takes longer."""


@dataclass(eq=False)
class Jobs:
    """The jobs that a namespace sees: its own and those of `shared`."""

    database: Database
    namespace: str
    writer: Writer

    async def put(self, job: JobRecord) -> JobRecord:
        """Creates or replaces the record of that id, and returns the stored record.

        A record that has ended stays as it is: a job that was reported as interrupted is not reported again by a server that
        lost its lease. Raises InvalidRequest, and StorageFull for a new job beyond the writer's `max_bytes`.
        """
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

    async def find(self, limit: int = 50, cursor: str | None = None) -> JobPage:
        """Lists jobs, newest first. Reads neither requests nor results."""
        query = select(*_LISTED).where(self._visible())
        rows, following = await self.database.newest(query, JobRow.position, "job", limit, cursor)
        jobs, damaged = list[JobRecord](), list[str]()
        for row in rows:
            try:
                jobs.append(_from_row(row))
            except StoreCorrupt:
                damaged.append(row.id)
        return JobPage(tuple(jobs), following, tuple(damaged))

    def _visible(self) -> ColumnElement[bool]:
        """Selects what is seen here. Jobs of `shared` are seen by the key that submitted them, and where the writer has no name."""
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
