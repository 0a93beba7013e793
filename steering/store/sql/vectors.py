"""SqlVectors: the VectorStore on a database. A put and its blob are one transaction; describe never touches a blob."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias, final

from cachetools import LRUCache
from sqlalchemy import ColumnElement, delete, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from steering.errors import StoreCorrupt
from steering.store.base import VectorFilter, VectorPage
from steering.store.formats.serialization import read_steering
from steering.store.formats.stored_vector import (
    DECODED_VECTORS,
    StoredVector,
    deserialize,
    is_version,
    not_found,
    serialize,
)
from steering.store.rules import (
    DESCRIPTION_LIMIT,
    check_filter,
    check_page,
    check_tags,
    check_text,
    fold,
    make_cursor,
    now,
    read_cursor,
    refuse_if_used,
)
from steering.store.sql.batched_reads import BatchedReads
from steering.store.sql.database import Database
from steering.store.sql.tables import DefaultSteeringRow, ProfileRow, VectorNameRow, VectorRow
from steering.store.sql.vector_rows import conditions_of, from_row, join_tags, to_row
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, check_name

log = logging.getLogger(__name__)
SMALL = 256 * 1024
"""Bytes below which a vector is decoded on the event loop: starting a thread takes longer."""
KEYS_PER_QUERY = 1000
"""Vectors that one query reads: far below the parameters that any database accepts."""
LABELS = (
    VectorRow.name,
    VectorRow.version,
    VectorRow.method,
    VectorRow.description,
    VectorRow.tags,
    VectorRow.created_at,
    VectorRow.sha256,
)
COLUMNS = (*LABELS, VectorRow.content)
_OTHER = aliased(VectorRow)
# The last number assigned may have been deleted, so the newest version is the highest one that is there.
NEWEST = VectorRow.version == (
    select(func.max(_OTHER.version)).where(_OTHER.name == VectorRow.name).correlate(VectorRow).scalar_subquery()
)
Key: TypeAlias = tuple[str, int | None]
"""A name and a version; None for the newest."""


@final
class SqlVectors:
    """See `steering.store.base.VectorStore`. Encoding and large decodings run in a thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reads = BatchedReads(self._read, KEYS_PER_QUERY)
        self._decoded: LRUCache[StoredVector, ConceptVector] = LRUCache(DECODED_VECTORS)

    async def put(self, vector: ConceptVector) -> ConceptVector:
        """See VectorStore.put."""
        serialized = await run_in_thread(serialize, vector)

        async def add(connection: AsyncConnection) -> StoredVector:
            stored = replace(serialized, version=await _next_version(connection, serialized.name), created_at=now())
            await connection.execute(insert(VectorRow).values(to_row(stored)))
            return stored

        return await run_in_thread(deserialize, await self._database.write(add))

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """See VectorStore.get."""
        check_name(name)
        if version is not None and not is_version(version):
            raise not_found(name, version)
        found = await self._reads.get((name, version))
        if found is None:
            raise not_found(name, version)
        if isinstance(found, ConceptVector):
            return found
        small = len(found.content) <= SMALL
        vector = deserialize(found) if small else await run_in_thread(deserialize, found)
        self._decoded[replace(found, content=b"")] = vector
        return vector

    async def _read(self, keys: tuple[Key, ...]) -> dict[Key, ConceptVector | StoredVector | None]:
        """Returns the current value of each key: the vector where it is cached, else its bytes, None where it is missing."""

        async def read(connection: AsyncConnection) -> dict[Key, ConceptVector | StoredVector | None]:
            labels = await _labels(connection, keys)
            known = {key: self._decoded.get(one) for key, one in labels.items()}
            unknown = {key: one for key, one in labels.items() if known[key] is None}
            whole = await _with_content(connection, unknown.values()) if unknown else {}
            return {key: whole.get(unknown[key].id) if key in unknown else known.get(key) for key in keys}

        return await self._database.read(read)

    async def find(self, where: VectorFilter, limit: int = 50, cursor: str | None = None) -> VectorPage:
        """See VectorStore.find."""
        query = select(*COLUMNS).where(NEWEST, *conditions_of(check_filter(where)))
        query = query.order_by(VectorRow.name).limit(check_page(limit) + 1)
        if cursor is not None:
            query = query.where(VectorRow.name > read_cursor("vector", cursor))
        stored = [from_row(row) for row in await self._database.rows(query)]
        vectors = await run_in_thread(_deserialize_valid, stored[:limit])
        return VectorPage(vectors, make_cursor("vector", stored[limit - 1].name) if len(stored) > limit else None)

    async def describe(self, name: str, description: str | None, tags: tuple[str, ...] | None) -> ConceptVector:
        """See VectorStore.describe."""
        check_name(name)
        changes: dict[str, str] = {}
        if description is not None:
            changes["description"] = check_text(description, "description", DESCRIPTION_LIMIT)
            changes["searched"] = fold(description)
        if tags is not None:
            changes["tags"] = join_tags(check_tags(tags))

        async def change(connection: AsyncConnection) -> None:
            await connection.execute(update(VectorRow).where(VectorRow.name == name).values(changes))

        if changes:
            await self._database.write(change)
        return await self.get(name)

    async def versions(self, name: str, limit: int = 50, before: int | None = None) -> tuple[int, ...]:
        """See VectorStore.versions."""
        query = select(VectorRow.version).where(VectorRow.name == check_name(name)).order_by(VectorRow.version.desc())
        if before is not None:
            query = query.where(VectorRow.version < before)
        rows = await self._database.rows(query.limit(check_page(limit)))
        if not rows and before is None:
            raise not_found(name, None)
        return tuple(row[0] for row in rows)

    async def delete(self, name: str, force: bool = False, version: int | None = None) -> None:
        """See VectorStore.delete."""
        check_name(name)
        if version is not None and not is_version(version):
            raise not_found(name, version)

        async def remove(connection: AsyncConnection) -> None:
            if not force:
                await _refuse_if_used(connection, name, version)
            chosen = [VectorRow.name == name, *(() if version is None else (VectorRow.version == version,))]
            deleted = await connection.execute(delete(VectorRow).where(*chosen))
            if deleted.rowcount == 0:
                raise not_found(name, version)

        await self._database.write(remove)


def _versions(versions: Iterable[tuple[str, int]]) -> ColumnElement[bool]:
    return tuple_(VectorRow.name, VectorRow.version).in_(list(versions))


async def _labels(connection: AsyncConnection, keys: Sequence[Key]) -> dict[Key, StoredVector]:
    """Reads every column but the content: one query for pinned versions, one for newest versions."""
    found: dict[Key, StoredVector] = {}
    if pinned := [(name, version) for name, version in keys if version is not None]:
        for row in await connection.execute(select(*LABELS).where(_versions(pinned))):
            found[row.name, row.version] = from_row((*row, b""))
    if names := [name for name, version in keys if version is None]:
        newest = select(*LABELS).where(NEWEST, VectorRow.name.in_(names))
        for row in await connection.execute(newest):
            found[row.name, None] = from_row((*row, b""))
    return found


async def _with_content(connection: AsyncConnection, labels: Iterable[StoredVector]) -> dict[str, StoredVector]:
    """Reads vectors with their content, by id."""
    query = select(*COLUMNS).where(_versions((one.name, one.version) for one in labels))
    return {stored.id: stored for stored in map(from_row, await connection.execute(query))}


async def _next_version(connection: AsyncConnection, name: str) -> int:
    """Records and returns the next version number. Writers are serialized, so no other reads the same number."""
    last = await connection.scalar(select(VectorNameRow.last_version).where(VectorNameRow.name == name))
    if last is None:
        await connection.execute(insert(VectorNameRow).values(name=name, last_version=1))
        return 1
    await connection.execute(update(VectorNameRow).where(VectorNameRow.name == name).values(last_version=last + 1))
    return int(last) + 1


async def _refuse_if_used(connection: AsyncConnection, name: str, version: int | None) -> None:
    count = await connection.scalar(select(func.count()).select_from(VectorRow).where(VectorRow.name == name))
    profiles = (await connection.execute(select(ProfileRow.name, ProfileRow.steering).order_by(ProfileRow.name))).all()
    default = await connection.scalar(select(DefaultSteeringRow.steering))
    refuse_if_used(
        name,
        {row.name: read_steering(row.steering, f"profile {row.name!r}") for row in profiles},
        None if default is None else read_steering(default, "the default steering"),
        version,
        only=count == 1,
    )


def _deserialize_valid(stored: Sequence[StoredVector]) -> tuple[ConceptVector, ...]:
    """Leaves out damaged vectors: one must not hide the others. Reading it by name raises the error."""
    valid = []
    for one in stored:
        try:
            valid.append(deserialize(one))
        except StoreCorrupt as error:
            log.warning("left out of a listing: %s", error.message)
    return tuple(valid)
