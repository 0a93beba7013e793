"""VectorReads: reads vectors by name for all namespaces: concurrent reads become one query, and decoded vectors are cached."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, final

from cachetools import LRUCache
from sqlalchemy import ColumnElement, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.namespaces import visible_from
from steering.store.formats.stored_vector import DECODED_VECTORS, StoredVector, deserialize
from steering.store.sql.batched_reads import BatchedReads
from steering.store.sql.database import Database
from steering.store.sql.tables import VectorRow
from steering.store.sql.vector_rows import LABELS, NEWEST, from_row
from steering.threads import run_in_thread
from steering.vectors import ConceptVector

SMALL = 256 * 1024
"""Bytes below which a vector is decoded on the event loop: starting a thread takes longer."""
KEYS_PER_QUERY = 1000
"""Vectors that one query reads: far below the parameters that any database accepts."""
Key: TypeAlias = tuple[str, str, int | None]
"""The namespace of the reader, a name and a version; None for the newest."""
Identity: TypeAlias = tuple[str, str, int]
"""The namespace of a vector, its name and version."""


@final
class VectorReads:
    """Reads what each caller sees of a name when its read begins."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reads = BatchedReads(self._read, KEYS_PER_QUERY)
        self._decoded: LRUCache[StoredVector, ConceptVector] = LRUCache(DECODED_VECTORS)

    async def get(self, namespace: str, name: str, version: int | None) -> ConceptVector | None:
        """Returns the vector as it is seen from a namespace, None where there is none. Raises StoreCorrupt."""
        found = await self._reads.get((namespace, name, version))
        if found is None or isinstance(found, ConceptVector):
            return found
        content, labels = found
        stored = from_row(labels, content=content)
        vector = deserialize(stored) if len(content) <= SMALL else await run_in_thread(deserialize, stored)
        self._decoded[from_row(labels)] = vector
        return vector

    async def _read(self, keys: tuple[Key, ...]) -> dict[Key, "ConceptVector | Unread | None"]:
        """Returns the current value of each key: the vector where it is cached, else its bytes, None where it is missing."""

        async def read(connection: AsyncConnection) -> dict[Key, ConceptVector | Unread | None]:
            labels = await _labels(connection, keys)
            found: dict[Key, ConceptVector | Unread | None] = dict.fromkeys(keys)
            missing: dict[Identity, list[Key]] = {}
            for key, row in labels.items():
                vector = self._decoded.get(from_row(row))
                found[key] = vector
                if vector is None:
                    missing.setdefault((row[0], row[1], row[2]), []).append(key)
            for identity, content in (await _contents(connection, missing) if missing else {}).items():
                for key in missing[identity]:
                    found[key] = (content, labels[key])
            return found

        return await self._database.read(read)


Row: TypeAlias = Sequence[Any]
Unread: TypeAlias = tuple[bytes, Row]
"""The content of a vector and its LABELS."""


async def _labels(connection: AsyncConnection, keys: Sequence[Key]) -> dict[Key, Row]:
    """Reads LABELS: one query for what each name is in its reader's namespace, one for pinned versions."""
    names = {(seen, name) for namespace, name, _ in keys for seen in visible_from(namespace)}
    newest = select(*LABELS).where(NEWEST, tuple_(VectorRow.namespace, VectorRow.name).in_(sorted(names)))
    there = {(row[0], row[1]): row for row in await connection.execute(newest)}
    found: dict[Key, Row] = {}
    pinned: dict[Identity, list[Key]] = {}
    for key in keys:
        namespace, name, version = key
        row = next((there[seen, name] for seen in visible_from(namespace) if (seen, name) in there), None)
        if row is None:
            continue
        if version is None or version == row[2]:
            found[key] = row
        else:
            pinned.setdefault((row[0], name, version), []).append(key)
    if pinned:
        for row in await connection.execute(select(*LABELS).where(_identities(pinned))):
            found.update(dict.fromkeys(pinned[row[0], row[1], row[2]], row))
    return found


async def _contents(connection: AsyncConnection, identities: Iterable[Identity]) -> dict[Identity, bytes]:
    query = select(VectorRow.namespace, VectorRow.name, VectorRow.version, VectorRow.content)
    rows = await connection.execute(query.where(_identities(identities)))
    return {(namespace, name, version): bytes(content) for namespace, name, version, content in rows}


def _identities(identities: Iterable[Identity]) -> ColumnElement[bool]:
    return tuple_(VectorRow.namespace, VectorRow.name, VectorRow.version).in_(list(identities))
