"""What an operator stores: API keys as their digests, the audit log, and named JSON documents such as the policy."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.errors import KeyNotFound, StoreCorrupt
from steering.namespaces import SHARED
from steering.schemas.governance import AuditEntryAnswer
from steering.store.database import AnyRow, Stored, exchange, note_change
from steering.store.records import KeyEdit, KeyRecord, now, read_record, values_of, write_record
from steering.store.references import pinned_vectors, require_vectors
from steering.store.tables import AuditRow, DocumentRow, KeyRow, columns_of

_KEY_COLUMNS = columns_of(KeyRow, KeyRecord)
_AUDIT_COLUMNS = tuple(getattr(AuditRow, name) for name in AuditEntryAnswer.model_fields)


class Keys(Stored):
    """API keys. No call stores a whole record that was read before, so what happened to the key meanwhile is kept."""

    async def create(self, key: KeyRecord) -> KeyRecord:
        """Stores a new key and returns it with created_at."""
        key = replace(key, created_at=now())

        async def save(connection: AsyncConnection) -> KeyRecord:
            await connection.execute(insert(KeyRow).values(_columns(values_of(key, KeyRecord))))
            await connection.run_sync(note_change, "keys")
            return key

        return await self.database.write(save)

    async def edit(self, key_id: str, edit: KeyEdit) -> KeyRecord | None:
        """Does to a key what `edit` says of what is stored now, in one transaction, and returns it as it is then, None if deleted.
        Raises KeyNotFound, and what `edit` raises. Works on a full disk, so that a key can always be revoked."""

        async def save(connection: AsyncConnection) -> KeyRecord | None:
            records = {row.id: _key(row) for row in await connection.execute(select(*_KEY_COLUMNS))}
            if (record := records.pop(key_id, None)) is None:
                raise KeyNotFound(f"there is no key {key_id[:80]!r}", param="id")
            fields = edit(record, tuple(records.values()))
            if fields is None:
                await connection.execute(delete(KeyRow).where(KeyRow.id == key_id))
            elif fields:
                await connection.execute(update(KeyRow).where(KeyRow.id == key_id).values(_columns(fields)))
            await connection.run_sync(note_change, "keys")
            return None if fields is None else replace(record, **fields)

        return await self.database.write(save, when_full=True)

    async def all(self) -> tuple[KeyRecord, ...]:
        """Returns every key in the order of creation."""
        query = select(*_KEY_COLUMNS).order_by(KeyRow.created_at, KeyRow.id)
        return tuple(map(_key, await self.database.rows(query)))

    async def exists(self, key_id: str) -> bool:
        """Returns whether a key is stored."""
        return bool(await self.database.rows(select(KeyRow.id).where(KeyRow.id == key_id)))

    async def touch(self, used: Mapping[str, str]) -> None:
        """Sets last_used_at by id. Unknown ids are ignored."""

        async def mark(connection: AsyncConnection) -> None:
            for key_id, at in used.items():
                await connection.execute(update(KeyRow).where(KeyRow.id == key_id).values(last_used_at=at))

        if used:
            await self.database.write(mark)


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


class Audit(Stored):
    """The audit log of one database. Entries are appended and pruned by age, never changed."""

    async def append(self, *, key: str, action: str, target: str, request_id: str = "", status: int = 200) -> None:
        """Appends an entry with the current time: which key did what to which thing. status: of the HTTP response."""
        entry = {"key": key, "action": action, "target": target, "request_id": request_id, "status": status}
        await self.database.change(insert(AuditRow).values({**entry, "at": now()}))

    async def find(self, limit: int = 50, cursor: str | None = None) -> tuple[list[AuditEntryAnswer], str | None]:
        """Lists entries, newest first."""
        query = select(*_AUDIT_COLUMNS)
        rows, following = await self.database.page(query, AuditRow.position, "audit", limit, cursor)
        return [AuditEntryAnswer.model_validate(row, from_attributes=True) for row in rows], following


class Documents(Stored):
    """Named JSON documents. A text `name@version` in one is a vector of `shared`, which is not deleted while it stands there."""

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
