"""Vectors: immutable versions of named vectors. A put and its blob are one transaction; listings never read a blob."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

from cachetools import LRUCache
from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from steering.errors import InvalidRequest, LimitExceeded, NotNewest, StoreCorrupt, UnsupportedFormat
from steering.store.blob import OWN, decode, digest, encode, read_stored_metadata, write_metadata
from steering.store.database import AnyRow, Database, check_storage, upsert
from steering.store.pages import check_page, entries_that_fit, make_cursor, read_cursor
from steering.store.records import VectorFilter, VectorPage, VersionPage, Writer, check_labels, now, values_of
from steering.store.references import refuse_if_used, vector_not_found
from steering.store.tables import VectorNameRow, VectorRow, columns_of, seen_from
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, VectorSummary, check_name

log = logging.getLogger(__name__)

SMALL = 256 * 1024
"""Bytes below which a vector is decoded on the event loop: starting a thread takes longer."""
DECODED_VECTORS = 128
"""Vectors that a store caches decoded: requests name the same few, and decoding one takes milliseconds."""
VERSION_LIMIT = 999_999_999
"""PostgreSQL raises for larger numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class VectorVersion:
    """What names and describes one version of a vector."""

    namespace: str
    name: str
    version: int
    description: str
    tags: tuple[str, ...]
    created_at: str
    sha256: str

    @property
    def id(self) -> str:
        """Returns `name@version`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class StoredVector(VectorVersion):
    """One version. `metadata` and `content` are empty where they were not read.

    created_by: the name of a key.
    metadata: the metadata inside `content`, apart from it so that listings need not read it.
    content: the result of `encode(labels=False)`, of which `sha256` is the digest.
    """

    method: str
    created_by: str
    metadata: str = ""
    content: bytes = b""


LABELS = (*columns_of(VectorRow, VectorVersion), VectorRow.method, VectorRow.created_by)
"""Columns of a vector that are small and of bounded size, in the order of the fields of StoredVector."""
SUMMARY = (*LABELS, VectorRow.metadata_json)
"""Columns of a listing: everything but the directions."""
IDENTITY = (VectorRow.namespace, VectorRow.name, VectorRow.version)
SIZE = func.length(VectorRow.metadata_json).label("bytes")
OTHER = aliased(VectorRow)
# The last number assigned may have been deleted, so the newest version is the highest one that is there.
NEWEST = VectorRow.version == (
    select(func.max(OTHER.version))
    .where(OTHER.namespace == VectorRow.namespace, OTHER.name == VectorRow.name)
    .correlate(VectorRow)
    .scalar_subquery()
)
Key: TypeAlias = tuple[str, str, int | None]
"""The namespace of a reader, a name, and a version; None for the newest."""


class VectorReads:
    """What the readers of one store share.

    decoded: decoded vectors, by what is stored of them besides their content.
    waiting: reads that have not begun. Whoever asks for the same key takes part, and nobody gets what was read before they asked.
    locks: at most one read of a key runs, so that a thousand requests that name one vector cost two reads, not a thousand.
    """

    def __init__(self) -> None:
        self.decoded: LRUCache[StoredVector, ConceptVector] = LRUCache(DECODED_VECTORS)
        self.waiting: dict[Key, asyncio.Task[ConceptVector]] = {}
        self.locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()


@dataclass(eq=False)
class Vectors:
    """The vectors that a namespace sees. A version number is never assigned twice, even after a delete.

    Encoding, large decodings and listings run in a thread.
    """

    database: Database
    namespace: str
    writer: Writer
    reads: VectorReads

    async def put(self, vector: ConceptVector, after: VectorSummary | None = None) -> ConceptVector:
        """Stores the vector as the next version of its name; returns it with version, sha256, created_at and namespace set.

        after: stores it only while this is the newest version of that name that the namespace sees, else raises VectorNotFound
        where there is none, NotNewest where it is another. Raises StorageFull when the writer would have more than `max_bytes`.
        """
        serialized = await run_in_thread(serialize, vector)

        async def add(connection: AsyncConnection) -> StoredVector:
            if after is not None:
                _check_newest(await self._labels(connection, after.name, None), after)
            await check_storage(connection, self.namespace, self.writer, len(serialized.content))
            version = await self._next_version(connection, serialized.name)
            who: dict[str, Any] = {"namespace": self.namespace, "created_by": self.writer.key}
            stored = replace(serialized, version=version, created_at=now(), **who)
            await connection.execute(insert(VectorRow).values(_to_row(stored)))
            return stored

        return await run_in_thread(deserialize, await self.database.write(add))

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """Returns the newest or the given version, digest checked. Raises VectorNotFound, StoreCorrupt."""
        _check_version(name, version)
        key = (self.namespace, name, version)
        task = self.reads.waiting.get(key)
        if task is None:
            task = self.reads.waiting[key] = asyncio.create_task(self._get(key))
            task.add_done_callback(_retrieved)
        return await asyncio.shield(task)

    async def _get(self, key: Key) -> ConceptVector:
        lock = self.reads.locks.setdefault(key, asyncio.Lock())
        async with lock:
            del self.reads.waiting[key]
            return await self._read(*key[1:])

    async def _read(self, name: str, version: int | None) -> ConceptVector:
        async def read(connection: AsyncConnection) -> StoredVector | ConceptVector | None:
            stored = await self._labels(connection, name, version)
            if stored is None or stored in self.reads.decoded:
                return stored and self.reads.decoded[stored]
            identity = (stored.namespace, stored.name, stored.version)
            content = await connection.scalar(select(VectorRow.content).where(tuple_(*IDENTITY) == identity))
            # None where it was deleted since its labels were read: on PostgreSQL each statement has a snapshot of its own
            return None if content is None else replace(stored, content=bytes(content))

        stored = await self.database.read(read)
        if stored is None:
            raise vector_not_found(name, version)
        if isinstance(stored, ConceptVector):
            return stored
        vector = deserialize(stored) if len(stored.content) <= SMALL else await run_in_thread(deserialize, stored)
        self.reads.decoded[replace(stored, content=b"")] = vector
        return vector

    async def find(self, where: VectorFilter, limit: int = 50, cursor: str | None = None) -> VectorPage:
        """Lists the newest version of each visible name. A page has fewer than `limit` where their metadata is large.

        Raises InvalidRequest for a cursor of another listing.
        """
        where.check()
        query = select(*IDENTITY, SIZE).where(NEWEST, seen_from(VectorRow, self.namespace), *_conditions_of(where))
        query = query.order_by(VectorRow.name).limit(check_page(limit) + 1)
        if cursor is not None:
            query = query.where(VectorRow.name > read_cursor("vector", cursor))
        listed = await self.database.rows(query)
        count = entries_that_fit(row.bytes for row in listed[:limit])
        chosen = tuple_(*IDENTITY).in_([row[:3] for row in listed[:count]])
        rows = await self.database.rows(select(*SUMMARY).where(chosen).order_by(VectorRow.name))
        vectors, damaged = await run_in_thread(_summarize_valid, map(_from_row, rows))
        following = make_cursor("vector", listed[count - 1].name) if len(listed) > count else None
        return VectorPage(vectors, following, damaged)

    async def names(self, limit: int | None = None) -> tuple[str, ...]:
        """Returns the visible names in their order, the first `limit` of them. Reads nothing else."""
        query = (
            select(VectorRow.name)
            .where(seen_from(VectorRow, self.namespace))
            .distinct()
            .order_by(VectorRow.name)
            .limit(limit)
        )
        return tuple(row.name for row in await self.database.rows(query))

    async def describe(self, name: str, description: str | None, tags: tuple[str, ...] | None) -> ConceptVector:
        """Changes description and tags of every version, never the directions. None leaves a field unchanged."""
        check_name(name)
        check_labels(description, tags)
        changes = {  # what is not given is set to itself
            "description": VectorRow.description if description is None else description,
            "searched": VectorRow.searched if description is None else description.casefold(),
            "tags": VectorRow.tags if tags is None else _join_tags(tags),
        }
        if not await self.database.change(update(VectorRow).where(self._own(name)).values(changes)):
            raise vector_not_found(name, None)
        return await self.get(name)

    async def versions(self, name: str, limit: int = 50, before: int | None = None) -> VersionPage:
        """Lists the versions of a name. Raises VectorNotFound for an unknown name.

        before: only numbers below it, which may be none.
        """
        query = select(*IDENTITY, SIZE).where(seen_from(VectorRow, self.namespace), VectorRow.name == check_name(name))
        query = query.order_by(VectorRow.version.desc()).limit(check_page(limit))
        if before is not None:
            query = query.where(VectorRow.version < before)
        listed = await self.database.rows(query)
        if not listed and before is None:
            raise vector_not_found(name, None)
        count = min(len(listed), entries_that_fit(row.bytes for row in listed))
        chosen = tuple_(*IDENTITY).in_([row[:3] for row in listed[:count]])
        rows = await self.database.rows(select(*SUMMARY).where(chosen).order_by(VectorRow.version.desc()))
        return await run_in_thread(_version_page, list(map(_from_row, rows)), min(limit, count))

    async def namespace_of(self, name: str) -> str:
        """Returns the namespace of the versions of a name that are seen. Raises VectorNotFound."""
        query = (
            select(VectorRow.namespace)
            .where(seen_from(VectorRow, self.namespace), VectorRow.name == check_name(name))
            .limit(1)
        )
        rows = await self.database.rows(query)
        if not rows:
            raise vector_not_found(name, None)
        return str(rows[0].namespace)

    async def delete(
        self, name: str, force: bool = False, version: int | None = None, *, documents_too: bool = True
    ) -> None:
        """Deletes all versions, or one. Raises VectorNotFound, or VectorInUse while a profile, a default or a document names it.

        force: deletes it although a profile or a default names it. documents_too: also where a document, such as the policy, does.
        """
        _check_version(name, version)

        async def remove(connection: AsyncConnection) -> None:
            if not (force and documents_too):
                await refuse_if_used(connection, self.namespace, name, version, only_documents=force)
            chosen = self._own(name) if version is None else and_(self._own(name), VectorRow.version == version)
            deleted = await connection.execute(delete(VectorRow).where(chosen))
            if deleted.rowcount == 0:
                raise vector_not_found(name, version)

        await self.database.write(remove, when_full=True)

    def _own(self, name: str) -> ColumnElement[bool]:
        return and_(VectorRow.namespace == self.namespace, VectorRow.name == name)

    async def _labels(self, connection: AsyncConnection, name: str, version: int | None) -> StoredVector | None:
        """Returns the LABELS of the newest or the given version that is seen here, None where there is none."""
        query = select(*LABELS).where(seen_from(VectorRow, self.namespace), VectorRow.name == name)
        query = query.order_by(VectorRow.version.desc()).limit(1)
        row = (
            await connection.execute(query if version is None else query.where(VectorRow.version == version))
        ).first()
        return None if row is None else _from_row(row)

    async def _next_version(self, connection: AsyncConnection, name: str) -> int:
        """Records and returns the next version number. Writers are serialized, so no other reads the same number."""
        key = {"namespace": self.namespace, "name": name}
        version = (await connection.scalar(select(VectorNameRow.last_version).filter_by(**key)) or 0) + 1
        await connection.run_sync(upsert, VectorNameRow, key, {"last_version": version})
        return version


def _check_version(name: str, version: int | None) -> None:
    """Raises InvalidRequest for what is no name, VectorNotFound for a number that no version has."""
    check_name(name)
    if version is not None and not 0 < version <= VERSION_LIMIT:
        raise vector_not_found(name, version)


def _check_newest(newest: VectorVersion | None, after: VectorSummary) -> None:
    """Raises VectorNotFound or NotNewest unless `after` is the newest version that is seen of its name."""
    if newest is None:
        raise vector_not_found(after.name, None)
    if (newest.namespace, newest.version) != (after.namespace, after.version):
        given, where = f"{after.id} of namespace {after.namespace!r}", f"{newest.id} of namespace {newest.namespace!r}"
        raise NotNewest(f"the newest version is {where}, not {given}", param="version")


def _retrieved(task: "asyncio.Task[ConceptVector]") -> None:
    """Marks the error of a read as retrieved, because callers that were cancelled never read it."""
    if not task.cancelled():
        task.exception()


def _from_row(row: AnyRow) -> StoredVector:
    """Reads a stored vector from LABELS, and its metadata if that is the next column. Without its content."""
    namespace, name, version, description, tags, *others = row
    return StoredVector(namespace, name, version, description, tuple(tags.split()), *others)


def _conditions_of(where: VectorFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if where.tag is not None:
        conditions.append(VectorRow.tags.contains(f" {where.tag} ", autoescape=True))
    if where.method is not None:
        conditions.append(VectorRow.method == where.method)
    if where.search is not None:
        text = where.search.casefold()
        in_name = VectorRow.name.contains(text, autoescape=True)
        conditions.append(or_(in_name, VectorRow.searched.contains(text, autoescape=True)))
    return conditions


def _join_tags(tags: tuple[str, ...]) -> str:
    """Writes tags so that each stands between spaces, where a search finds it."""
    return f" {' '.join(tags)} " if tags else ""


def _to_row(stored: StoredVector) -> dict[str, Any]:
    values = values_of(stored, StoredVector)
    values["metadata_json"] = values.pop("metadata")
    texts = {"tags": _join_tags(stored.tags), "searched": stored.description.casefold()}
    return {**values, **texts, "size": len(stored.content)}


def serialize(vector: ConceptVector) -> StoredVector:
    """Returns the vector ready to be stored, with version 0 and no date. Raises InvalidRequest or LimitExceeded.

    The bytes are decoded once, so that nothing is stored that could not be read.
    """
    check_labels(vector.description, vector.tags)
    content = encode(vector, labels=False)
    decode(content, name=vector.name, limits=OWN)
    return StoredVector(
        namespace="",
        name=vector.name,
        version=0,
        method=vector.method,
        description=vector.description,
        tags=vector.tags,
        created_at="",
        created_by="",
        sha256=digest(content),
        metadata=write_metadata(vector, labels=False),
        content=content,
    )


def deserialize(stored: StoredVector) -> ConceptVector:
    """Returns the vector. Raises StoreCorrupt when the bytes are not those that were stored."""
    if digest(stored.content) != stored.sha256:
        raise StoreCorrupt(f"the bytes of vector {stored.id} do not match their SHA-256; restore it or delete it")
    try:
        vector = decode(stored.content, name=stored.name, limits=OWN)
    except (InvalidRequest, LimitExceeded, UnsupportedFormat) as error:
        raise StoreCorrupt(f"the bytes of vector {stored.id} cannot be read: {error.message}") from error
    return replace(vector, **values_of(stored, VectorVersion))


def _summarize_valid(stored: Iterable[StoredVector]) -> tuple[tuple[VectorSummary, ...], tuple[str, ...]]:
    """Returns vectors without their directions, from their metadata alone, and the ids of those whose metadata is damaged.

    These are left out: one vector must not hide the others. Reading it by name raises the error.
    """
    valid, damaged = [], []
    for vector in stored:
        try:
            metadata = read_stored_metadata(vector.metadata)
        except InvalidRequest as error:
            log.warning("left out of a listing: the metadata of vector %s cannot be read: %s", vector.id, error.message)
            damaged.append(vector.id)
            continue
        layers = {int(layer): numbers for layer, numbers in metadata.layers.items()}
        valid.append(VectorSummary(**values_of(vector, VectorVersion), **metadata.shared_fields(), layers=layers))
    return tuple(valid), tuple(damaged)


def _version_page(stored: Sequence[StoredVector], limit: int) -> VersionPage:
    """Returns a page of at most `limit` versions of one name, which are given newest first."""
    if not stored:
        return VersionPage("", (), None)
    versions, damaged = _summarize_valid(stored)
    oldest = stored[-1]
    more = len(stored) == limit and oldest.version > 1
    return VersionPage(oldest.namespace, versions, oldest.version if more else None, damaged)
