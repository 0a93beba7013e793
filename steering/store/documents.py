"""Documents: named JSON documents, such as the policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.namespaces import SHARED
from steering.store.database import Database, exchange
from steering.store.records import now, read_record, write_record
from steering.store.references import pinned_vectors, require_vectors
from steering.store.tables import DocumentRow


@dataclass(eq=False)
class Documents:
    """Named JSON documents. A text `name@version` in one is a vector of `shared`, which is not deleted while it stands there."""

    database: Database

    async def get(self, name: str) -> Mapping[str, Any] | None:
        """Returns a document, None where there is none."""
        rows = await self.database.rows(select(DocumentRow.content).where(DocumentRow.name == name))
        return read_record(rows[0].content, f"document {name!r}") if rows else None

    async def put(self, name: str, content: Mapping[str, Any] | None) -> None:
        """Creates or replaces a document; None deletes it. Raises VectorNotFound for a vector that it names."""
        text = write_record(content, name)
        values = None if text is None else {"content": text, "updated_at": now()}

        async def save(connection: AsyncConnection) -> None:
            await require_vectors(connection, SHARED, pinned_vectors(text or ""))
            await connection.run_sync(exchange, "documents", DocumentRow, {"name": name}, values)

        await self.database.write(save, when_full=content is None)
