"""Keys: API keys, as their digests."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.errors import KeyNotFound, StoreCorrupt
from steering.store.database import AnyRow, Database, note_change
from steering.store.records import RECORD_ID, KeyEdit, KeyRecord, now, read_record, values_of, write_record
from steering.store.tables import KeyRow, columns_of

_COLUMNS = columns_of(KeyRow, KeyRecord)


@dataclass(eq=False)
class Keys:
    """API keys. No call stores a whole record that was read before, so what happened to the key meanwhile is kept."""

    database: Database

    async def create(self, key: KeyRecord) -> KeyRecord:
        """Stores a new key and returns it with created_at."""
        key = replace(key, created_at=now())

        async def save(connection: AsyncConnection) -> KeyRecord:
            await connection.execute(insert(KeyRow).values(_columns(values_of(key, KeyRecord))))
            await connection.run_sync(note_change, "keys")
            return key

        return await self.database.write(save)

    async def change(self, key_id: str, fields: Mapping[str, Any]) -> KeyRecord:
        """Sets some fields of a key, by their names in KeyRecord, and returns it as it is now. Raises KeyNotFound."""
        _check_id(key_id)
        values = {"id": key_id, **_columns(fields)}  # with the id, because an UPDATE needs at least one column

        async def save(connection: AsyncConnection) -> KeyRecord:
            await connection.execute(update(KeyRow).where(KeyRow.id == key_id).values(values))
            row = (await connection.execute(select(*_COLUMNS).where(KeyRow.id == key_id))).first()
            if row is None:
                raise _not_found(key_id)
            await connection.run_sync(note_change, "keys")
            return _key(row)

        return await self.database.write(save)

    async def edit(self, key_id: str, edit: KeyEdit) -> KeyRecord | None:
        """Does to a key what `edit` says of what is stored now, in one transaction, and returns it as it is then.

        Returns None where `edit` deletes it. Raises KeyNotFound, and what `edit` raises.
        """
        _check_id(key_id)

        async def save(connection: AsyncConnection) -> KeyRecord | None:
            records = {row.id: _key(row) for row in await connection.execute(select(*_COLUMNS))}
            if (record := records.pop(key_id, None)) is None:
                raise _not_found(key_id)
            fields = edit(record, tuple(records.values()))
            if fields is None:
                await connection.execute(delete(KeyRow).where(KeyRow.id == key_id))
            elif fields:
                await connection.execute(update(KeyRow).where(KeyRow.id == key_id).values(_columns(fields)))
            await connection.run_sync(note_change, "keys")
            return None if fields is None else replace(record, **fields)

        return await self.database.write(save)

    async def all(self) -> tuple[KeyRecord, ...]:
        """Returns every key in the order of creation."""
        query = select(*_COLUMNS).order_by(KeyRow.created_at, KeyRow.id)
        return tuple(map(_key, await self.database.rows(query)))

    async def delete(self, key_id: str) -> None:
        """Deletes a key. Raises KeyNotFound."""
        _check_id(key_id)

        async def remove(connection: AsyncConnection) -> None:
            if (await connection.execute(delete(KeyRow).where(KeyRow.id == key_id))).rowcount == 0:
                raise _not_found(key_id)
            await connection.run_sync(note_change, "keys")

        await self.database.write(remove, when_full=True)

    async def touch(self, used: Mapping[str, str]) -> None:
        """Sets last_used_at by id. Unknown ids are ignored."""

        async def mark(connection: AsyncConnection) -> None:
            for key_id, at in used.items():
                await connection.execute(update(KeyRow).where(KeyRow.id == key_id).values(last_used_at=at))

        if used:
            await self.database.write(mark)


def _not_found(key_id: str) -> KeyNotFound:
    return KeyNotFound(f"there is no key {key_id[:80]!r}", param="id")


def _check_id(key_id: str) -> None:
    """Raises KeyNotFound for what no key has as its id, which some databases refuse as text."""
    if not RECORD_ID.fullmatch(key_id):
        raise _not_found(key_id)


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
