"""Keys, audit log and documents on a database."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, final

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.store.formats.serialization import read_record, write_record
from steering.store.governance import AuditEntry, KeyRecord
from steering.store.rules import now
from steering.store.sql.database import Database
from steering.store.sql.servers import note_change
from steering.store.sql.tables import AuditRow, DocumentRow, KeyRow

KEY_COLUMNS = (
    KeyRow.id,
    KeyRow.name,
    KeyRow.digest,
    KeyRow.scopes,
    KeyRow.limits,
    KeyRow.created_at,
    KeyRow.expires_at,
    KeyRow.last_used_at,
    KeyRow.namespace,
)
AUDIT_COLUMNS = (
    AuditRow.key,
    AuditRow.action,
    AuditRow.target,
    AuditRow.request_id,
    AuditRow.status,
    AuditRow.at,
)


@final
class SqlKeys:
    """See `steering.store.governance.KeyStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, key: KeyRecord) -> KeyRecord:
        """See KeyStore.put."""
        values = {
            "id": key.id,
            "name": key.name,
            "digest": key.digest,
            "scopes": " ".join(key.scopes),
            "limits": write_record(key.limits, "limits"),
            "expires_at": key.expires_at,
            "last_used_at": key.last_used_at,
            "namespace": key.namespace,
        }

        async def save(connection: AsyncConnection) -> KeyRecord:
            created = await connection.scalar(select(KeyRow.created_at).where(KeyRow.id == key.id))
            stored = replace(key, created_at=created or now())
            change = insert(KeyRow) if created is None else update(KeyRow).where(KeyRow.id == key.id)
            await connection.execute(change.values({**values, "created_at": stored.created_at}))
            await note_change(connection, "keys")
            return stored

        return await self._database.write(save)

    async def all(self) -> tuple[KeyRecord, ...]:
        """See KeyStore.all."""
        rows = await self._database.rows(select(*KEY_COLUMNS).order_by(KeyRow.created_at, KeyRow.id))
        return tuple(_key(row) for row in rows)

    async def delete(self, key_id: str) -> bool:
        """See KeyStore.delete."""

        async def remove(connection: AsyncConnection) -> bool:
            await note_change(connection, "keys")
            return (await connection.execute(delete(KeyRow).where(KeyRow.id == key_id))).rowcount > 0

        return await self._database.write(remove)

    async def touch(self, used: Mapping[str, str]) -> None:
        """See KeyStore.touch."""

        async def mark(connection: AsyncConnection) -> None:
            for key_id, at in used.items():
                await connection.execute(update(KeyRow).where(KeyRow.id == key_id).values(last_used_at=at))

        if used:
            await self._database.write(mark)


def _key(row: Sequence[Any]) -> KeyRecord:
    key_id, name, digest, scopes, limits, created_at, expires_at, last_used_at, namespace = row
    read = read_record(limits, f"key {key_id}") or {}
    return KeyRecord(key_id, name, digest, tuple(scopes.split()), read, created_at, expires_at, last_used_at, namespace)


@final
class SqlAudit:
    """See `steering.store.governance.AuditStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(self, entry: AuditEntry) -> None:
        """See AuditStore.append."""
        values = {name: getattr(entry, name) for name in ("key", "action", "target", "request_id", "status")}
        await self._database.change(insert(AuditRow).values({**values, "at": now()}))

    async def find(self, limit: int = 50, cursor: str | None = None) -> tuple[tuple[AuditEntry, ...], str | None]:
        """See AuditStore.find."""
        query = select(*AUDIT_COLUMNS)
        rows, following = await self._database.newest(query, AuditRow.position, "audit", limit, cursor)
        return tuple(AuditEntry(*row) for row in rows), following

    async def prune(self, before: str) -> int:
        """See AuditStore.prune."""
        return await self._database.change(delete(AuditRow).where(AuditRow.at < before))


@final
class SqlDocuments:
    """See `steering.store.governance.DocumentStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, name: str) -> Mapping[str, Any] | None:
        """See DocumentStore.get."""
        rows = await self._database.rows(select(DocumentRow.content).where(DocumentRow.name == name))
        return read_record(rows[0][0], f"document {name!r}") if rows else None

    async def put(self, name: str, content: Mapping[str, Any] | None) -> None:
        """See DocumentStore.put."""
        text = write_record(content, name)

        async def exchange(connection: AsyncConnection) -> None:
            await note_change(connection, "documents")
            await connection.execute(delete(DocumentRow).where(DocumentRow.name == name))
            if text is not None:
                await connection.execute(insert(DocumentRow).values(name=name, content=text, updated_at=now()))

        await self._database.write(exchange)
