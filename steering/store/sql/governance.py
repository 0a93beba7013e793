"""Keys, audit log and documents on a database."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.errors import StoreCorrupt
from steering.namespaces import SHARED
from steering.store.formats.serialization import KEY_ID, key_not_found, read_record, write_record
from steering.store.governance import AuditEntry, AuditStore, DocumentStore, KeyEdit, KeyRecord, KeyStore
from steering.store.rules import now, pinned_vectors, values_of
from steering.store.sql.database import AnyRow, StorePart, exchange, note_change
from steering.store.sql.tables import AuditRow, DocumentRow, KeyRow, columns_of
from steering.store.sql.vector_reads import require_vectors

KEY_COLUMNS = columns_of(KeyRow, KeyRecord)


@final
class SqlKeys(StorePart, KeyStore):
    """The KeyStore on a database."""

    async def create(self, key: KeyRecord) -> KeyRecord:
        """See KeyStore.create."""
        key = replace(key, created_at=now())

        async def save(connection: AsyncConnection) -> KeyRecord:
            await connection.execute(insert(KeyRow).values(_columns(values_of(key, KeyRecord))))
            await connection.run_sync(note_change, "keys")
            return key

        return await self._database.write(save)

    async def change(self, key_id: str, fields: Mapping[str, Any]) -> KeyRecord:
        """See KeyStore.change."""
        _check_id(key_id)
        values = {"id": key_id, **_columns(fields)}  # with the id, because an UPDATE needs at least one column

        async def save(connection: AsyncConnection) -> KeyRecord:
            await connection.execute(update(KeyRow).where(KeyRow.id == key_id).values(values))
            row = (await connection.execute(select(*KEY_COLUMNS).where(KeyRow.id == key_id))).first()
            if row is None:
                raise key_not_found(key_id)
            await connection.run_sync(note_change, "keys")
            return _key(row)

        return await self._database.write(save)

    async def edit(self, key_id: str, edit: KeyEdit) -> KeyRecord | None:
        """See KeyStore.edit."""
        _check_id(key_id)

        async def save(connection: AsyncConnection) -> KeyRecord | None:
            records = {row.id: _key(row) for row in await connection.execute(select(*KEY_COLUMNS))}
            if (record := records.pop(key_id, None)) is None:
                raise key_not_found(key_id)
            fields = edit(record, tuple(records.values()))
            if fields is None:
                await connection.execute(delete(KeyRow).where(KeyRow.id == key_id))
            elif fields:
                await connection.execute(update(KeyRow).where(KeyRow.id == key_id).values(_columns(fields)))
            await connection.run_sync(note_change, "keys")
            return None if fields is None else replace(record, **fields)

        return await self._database.write(save)

    async def all(self) -> tuple[KeyRecord, ...]:
        """See KeyStore.all."""
        query = select(*KEY_COLUMNS).order_by(KeyRow.created_at, KeyRow.id)
        return tuple(map(_key, await self._database.rows(query)))

    async def delete(self, key_id: str) -> None:
        """See KeyStore.delete."""
        _check_id(key_id)

        async def remove(connection: AsyncConnection) -> None:
            if (await connection.execute(delete(KeyRow).where(KeyRow.id == key_id))).rowcount == 0:
                raise key_not_found(key_id)
            await connection.run_sync(note_change, "keys")

        await self._database.write(remove, when_full=True)

    async def touch(self, used: Mapping[str, str]) -> None:
        """See KeyStore.touch."""

        async def mark(connection: AsyncConnection) -> None:
            for key_id, at in used.items():
                await connection.execute(update(KeyRow).where(KeyRow.id == key_id).values(last_used_at=at))

        if used:
            await self._database.write(mark)


def _check_id(key_id: str) -> None:
    """Raises KeyNotFound for what no key has as its id, which some databases refuse as text."""
    if not KEY_ID.fullmatch(key_id):
        raise key_not_found(key_id)


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns fields of a KeyRecord as the table has them."""
    values = dict(fields)
    if "scopes" in values:
        values["scopes"] = " ".join(values["scopes"])
    if "limits" in values:
        values["limits"] = write_record(values["limits"], "limits")
    return values


def _key(row: AnyRow) -> KeyRecord:
    scopes = tuple(row.scopes.split())
    try:
        limits = read_record(row.limits, f"key {row.id}")
    except StoreCorrupt:  # one damaged row must not stop all other keys, nor be left out: without keys a server is open
        scopes, limits = (), {}
    return KeyRecord(**{**values_of(row, KeyRecord), "scopes": scopes, "limits": limits})


@final
class SqlAudit(StorePart, AuditStore):
    """The AuditStore on a database."""

    async def append(self, entry: AuditEntry) -> None:
        """See AuditStore.append."""
        await self._database.change(insert(AuditRow).values({**values_of(entry, AuditEntry), "at": now()}))

    async def find(self, limit: int = 50, cursor: str | None = None) -> tuple[tuple[AuditEntry, ...], str | None]:
        """See AuditStore.find."""
        query = select(*columns_of(AuditRow, AuditEntry))
        rows, following = await self._database.newest(query, AuditRow.position, "audit", limit, cursor)
        return tuple(AuditEntry(**values_of(row, AuditEntry)) for row in rows), following

    async def prune(self, before: str) -> int:
        """See AuditStore.prune."""
        return await self._database.change(delete(AuditRow).where(AuditRow.at < before), when_full=True)


@final
class SqlDocuments(StorePart, DocumentStore):
    """The DocumentStore on a database."""

    async def get(self, name: str) -> Mapping[str, Any] | None:
        """See DocumentStore.get."""
        rows = await self._database.rows(select(DocumentRow.content).where(DocumentRow.name == name))
        return read_record(rows[0].content, f"document {name!r}") if rows else None

    async def put(self, name: str, content: Mapping[str, Any] | None) -> None:
        """See DocumentStore.put."""
        text = write_record(content, name)
        values = None if text is None else {"content": text, "updated_at": now()}

        async def save(connection: AsyncConnection) -> None:
            await require_vectors(connection, SHARED, pinned_vectors(text or ""))
            await connection.run_sync(exchange, "documents", DocumentRow, {"name": name}, values)

        await self._database.write(save, when_full=content is None)
