"""Reads vectors by name for all namespaces: concurrent reads become one query (BatchedReads), and decoded vectors are cached."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Generic, TypeAlias, TypeVar, final

from cachetools import LRUCache
from sqlalchemy import ColumnElement, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from steering.namespaces import visible_from
from steering.store.formats.stored_vector import DECODED_VECTORS, StoredVector, VectorVersion, deserialize, not_found
from steering.store.sql.database import AnyRow, Database
from steering.store.sql.tables import VectorRow, columns_of
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, VectorId

SMALL = 256 * 1024
"""Bytes below which a vector is decoded on the event loop: starting a thread takes longer."""
KEYS_PER_QUERY = 1000
"""Vectors that one query reads: far below the parameters that any database accepts."""
LOOP_CYCLES = 4
"""Cycles of the event loop from the arrival of a request to its read."""
MAX_ROUNDS = 32
"""Rounds of LOOP_CYCLES after which a read begins although further keys keep arriving."""
LABELS = (*columns_of(VectorRow, VectorVersion), VectorRow.method, VectorRow.created_by)
"""Columns of a vector that are small and of bounded size, in the order of the fields of StoredVector."""
OTHER = aliased(VectorRow)
# The last number assigned may have been deleted, so the newest version is the highest one that is there.
NEWEST = VectorRow.version == (
    select(func.max(OTHER.version))
    .where(OTHER.namespace == VectorRow.namespace, OTHER.name == VectorRow.name)
    .correlate(VectorRow)
    .scalar_subquery()
)
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Key: TypeAlias = tuple[str, str, int | None]
"""The namespace of the reader, a name and a version; None for the newest."""
Identity: TypeAlias = tuple[str, str, int]
"""The namespace of a vector, its name and version."""
Found: TypeAlias = ConceptVector | StoredVector | None
"""A vector that is cached, else what is stored, None where there is none."""


class BatchedReads(Generic[K, V]):
    """Runs one read at a time for all keys waiting when it begins. No caller gets a value read before it asked.

    Requests arrive in bursts and name the same few vectors, and a transaction costs more than a row.
    """

    def __init__(self, read: Callable[[tuple[K, ...]], Awaitable[Mapping[K, V]]], max_keys: int) -> None:
        """read: a value for each of at most `max_keys` keys; its exception is raised in every caller of that read."""
        self._read, self._max_keys = read, max_keys
        self._waiting: dict[K, list[asyncio.Future[V]]] = {}
        self._reader: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V:
        """Returns the current value of a key."""
        future: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._serve())
        return await future

    async def _wait_for_burst(self) -> None:
        """Returns when no key arrived for LOOP_CYCLES: a burst shares one transaction, and a single reader is not delayed."""
        seen = -1
        for _ in range(MAX_ROUNDS):
            if seen == (seen := sum(map(len, self._waiting.values()))):
                return
            for _ in range(LOOP_CYCLES):
                await asyncio.sleep(0)

    async def _serve(self) -> None:
        while self._waiting:
            await self._wait_for_burst()
            batch = {key: self._waiting.pop(key) for key in tuple(islice(self._waiting, self._max_keys))}
            waiting = [future for futures in batch.values() for future in futures]
            try:
                found = await self._read(tuple(batch))
            except Exception as error:
                for future in waiting:
                    if not future.done():
                        future.set_exception(error)
                continue
            except BaseException:
                for future in waiting:
                    future.cancel()
                raise
            for key, futures in batch.items():
                for future in futures:
                    if not future.done():  # its caller may have left
                        future.set_result(found[key])


@final
class VectorReads:
    """Reads what each caller sees of a name when its read begins."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._reads = BatchedReads(self._read, KEYS_PER_QUERY)
        self._decoded: LRUCache[StoredVector, ConceptVector] = LRUCache(DECODED_VECTORS)

    async def get(self, namespace: str, name: str, version: int | None) -> ConceptVector | None:
        """Returns the vector as it is seen from a namespace, None where there is none. Raises StoreCorrupt."""
        found = await self._reads.get((namespace, name, version))
        if not isinstance(found, StoredVector):
            return found
        vector = deserialize(found) if len(found.content) <= SMALL else await run_in_thread(deserialize, found)
        self._decoded[replace(found, content=b"")] = vector
        return vector

    async def _read(self, keys: tuple[Key, ...]) -> dict[Key, Found]:
        """Returns the current value of each key."""

        async def read(connection: AsyncConnection) -> dict[Key, Found]:
            labels = await read_labels(connection, keys)
            found: dict[Key, Found] = {key: self._decoded.get(stored) for key, stored in labels.items()}
            missing = {key: stored for key, stored in labels.items() if found[key] is None}
            contents = await _contents(connection, set(map(_identity, missing.values()))) if missing else {}
            for key, stored in missing.items():
                content = contents.get(_identity(stored))
                # None where it was deleted since its labels were read
                found[key] = None if content is None else replace(stored, content=content)
            return {**dict.fromkeys(keys), **found}

        return await self.database.read(read)


def from_row(row: AnyRow) -> StoredVector:
    """Reads a stored vector from LABELS, and its metadata if that is the next column. Without its content."""
    namespace, name, version, description, tags, *others = row
    return StoredVector(namespace, name, version, description, tuple(tags.split()), *others)


def _identity(stored: StoredVector) -> Identity:
    return stored.namespace, stored.name, stored.version


async def read_labels(connection: AsyncConnection, keys: Sequence[Key]) -> dict[Key, StoredVector]:
    """Returns the LABELS of the keys that are there: one query for what each name is in its reader's namespace, one for pinned versions."""
    names = {(seen, name) for namespace, name, _ in keys for seen in visible_from(namespace)}
    newest = select(*LABELS).where(NEWEST, tuple_(VectorRow.namespace, VectorRow.name).in_(sorted(names)))
    there = {(row.namespace, row.name): from_row(row) for row in await connection.execute(newest)}
    found: dict[Key, StoredVector] = {}
    pinned: dict[Identity, list[Key]] = {}
    for key in keys:
        namespace, name, version = key
        stored = next((there[seen, name] for seen in visible_from(namespace) if (seen, name) in there), None)
        if stored is None:
            continue
        if version is None or version == stored.version:
            found[key] = stored
        else:
            pinned.setdefault((stored.namespace, name, version), []).append(key)
    if pinned:
        for row in await connection.execute(select(*LABELS).where(_identities(pinned))):
            found.update(dict.fromkeys(pinned[row.namespace, row.name, row.version], from_row(row)))
    return found


async def require_vectors(connection: AsyncConnection, namespace: str, names: Iterable[str]) -> None:
    """Raises VectorNotFound for a name that the namespace sees no vector for.

    What is stored in the same transaction names no deleted vector: writers take turns, and a delete looks for what names it.
    """
    keys = [(namespace, key.name, key.version) for key in map(VectorId.parse, names)]
    found = await read_labels(connection, keys) if keys else {}
    for key in keys:
        if key not in found:
            raise not_found(*key[1:])


async def _contents(connection: AsyncConnection, identities: Iterable[Identity]) -> dict[Identity, bytes]:
    query = select(VectorRow.namespace, VectorRow.name, VectorRow.version, VectorRow.content)
    rows = await connection.execute(query.where(_identities(identities)))
    return {(namespace, name, version): bytes(content) for namespace, name, version, content in rows}


def _identities(identities: Iterable[Identity]) -> ColumnElement[bool]:
    return tuple_(VectorRow.namespace, VectorRow.name, VectorRow.version).in_(list(identities))
