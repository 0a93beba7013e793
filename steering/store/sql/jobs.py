"""SqlJobs and SqlOutputs: job records and their outputs on a database."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

from sqlalchemy import ColumnElement, and_, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.namespaces import visible_from
from steering.store.base import JobRecord
from steering.store.formats.serialization import (
    UNFINISHED,
    check_job,
    is_job_id,
    job_not_found,
    read_record,
    write_record,
)
from steering.store.rules import now
from steering.store.sql.database import Database
from steering.store.sql.tables import JobOutputRow, JobRow

COLUMNS = (
    JobRow.id,
    JobRow.kind,
    JobRow.status,
    JobRow.request,
    JobRow.progress,
    JobRow.result,
    JobRow.error,
    JobRow.created_at,
    JobRow.updated_at,
    JobRow.namespace,
    JobRow.owner,
)


@final
class SqlJobs:
    """See `steering.store.base.JobStore`."""

    def __init__(self, database: Database, namespace: str) -> None:
        self._database, self._namespace = database, namespace

    async def put(self, job: JobRecord) -> JobRecord:
        """See JobStore.put."""
        values = _to_row(check_job(job))

        async def save(connection: AsyncConnection) -> JobRecord:
            # The id of another namespace's job is refused by the unique constraint.
            own = and_(JobRow.namespace == self._namespace, JobRow.id == job.id)
            found = (await connection.execute(select(*COLUMNS).where(own))).first()
            before = None if found is None else _from_row(found)
            if before is not None and before.status not in UNFINISHED:
                return before
            made = before.created_at if before else now()
            stored = replace(job, created_at=made, updated_at=now(), namespace=self._namespace)
            labels = {name: getattr(stored, name) for name in ("namespace", "owner", "created_at", "updated_at")}
            change = insert(JobRow) if before is None else update(JobRow).where(own)
            await connection.execute(change.values({**values, **labels}))
            return stored

        return await self._database.write(save)

    async def get(self, job_id: str) -> JobRecord:
        """See JobStore.get."""
        if not is_job_id(job_id):
            raise job_not_found(job_id)
        rows = await self._database.rows(select(*COLUMNS).where(self._visible(), JobRow.id == job_id))
        if not rows:
            raise job_not_found(job_id)
        return _from_row(rows[0])

    async def find(self, limit: int = 50, cursor: str | None = None) -> tuple[tuple[JobRecord, ...], str | None]:
        """See JobStore.find."""
        query = select(*COLUMNS).where(self._visible())
        rows, following = await self._database.newest(query, JobRow.position, "job", limit, cursor)
        return tuple(map(_from_row, rows)), following

    def _visible(self) -> ColumnElement[bool]:
        return JobRow.namespace.in_(visible_from(self._namespace))


def _to_row(job: JobRecord) -> dict[str, Any]:
    return {
        "id": job.id,
        "kind": job.kind,
        "status": job.status,
        "request": write_record(job.request, "request"),
        "progress": write_record(job.progress, "progress"),
        "result": write_record(job.result, "result"),
        "error": write_record(job.error, "error"),
    }


def _from_row(row: Sequence[Any]) -> JobRecord:
    job_id, kind, status, request, progress, result, error, created_at, updated_at, namespace, owner = row
    where = f"job {job_id}"
    return JobRecord(
        id=job_id,
        kind=kind,
        status=status,
        request=read_record(request, where) or {},
        progress=read_record(progress, where) or {},
        result=read_record(result, where),
        error=read_record(error, where),
        created_at=created_at,
        updated_at=updated_at,
        namespace=namespace,
        owner=owner,
    )


@final
class SqlOutputs:
    """See `steering.store.outputs.OutputStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(self, output_id: str, part: int, content: str) -> None:
        """See OutputStore.append."""
        values = {"output_id": output_id, "part": part, "created_at": now(), "content": content}
        await self._database.change(insert(JobOutputRow).values(values))

    async def read(self, output_id: str, part: int) -> str | None:
        """See OutputStore.read."""
        query = select(JobOutputRow.content).where(JobOutputRow.output_id == output_id, JobOutputRow.part == part)
        rows = await self._database.rows(query)
        return rows[0][0] if rows else None

    async def prune(self, before: str) -> int:
        """See OutputStore.prune."""
        return await self._database.change(delete(JobOutputRow).where(JobOutputRow.created_at < before))
