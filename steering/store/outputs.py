"""Outputs: texts in numbered parts, such as the lines of a batch, written one after the other and deleted by age."""

from dataclasses import dataclass

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.namespaces import SHARED
from steering.store.database import Database, check_storage
from steering.store.records import UNLIMITED, Writer, now
from steering.store.tables import JobOutputRow


@dataclass(eq=False)
class Outputs:
    """The outputs of the jobs of one database."""

    database: Database

    async def append(
        self, output_id: str, part: int, content: str, namespace: str = SHARED, writer: Writer = UNLIMITED
    ) -> None:
        """Stores part `part` (0, 1, ...) of an output with the current time. A part is never changed.

        Raises StorageFull when the writer would have more than `max_bytes` in the namespace.
        """
        size = len(content.encode())
        labels = {"created_by": writer.key, "namespace": namespace, "size": size}
        values = {"output_id": output_id, "part": part, "created_at": now(), "content": content, **labels}

        async def add(connection: AsyncConnection) -> None:
            await check_storage(connection, namespace, writer, size)
            await connection.execute(insert(JobOutputRow).values(values))

        await self.database.write(add)

    async def read(self, output_id: str, part: int) -> str | None:
        """Returns one part, None where there is none."""
        query = select(JobOutputRow.content).where(JobOutputRow.output_id == output_id, JobOutputRow.part == part)
        rows = await self.database.rows(query)
        return rows[0].content if rows else None

    async def prune(self, before: str) -> int:
        """Deletes parts older than a time; returns how many."""
        return await self.database.change(delete(JobOutputRow).where(JobOutputRow.created_at < before), when_full=True)
