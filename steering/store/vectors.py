"""Vectors: immutable versions of named vectors. A put and its blob are one transaction; listings never read a blob."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

from cachetools import LRUCache
from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from steering.errors import InvalidRequest, LimitExceeded, NotNewest, StoreCorrupt, UnsupportedFormat
from steering.store.blob import OWN, decode, digest, encode, read_stored_metadata, write_metadata
from steering.store.database import (
    AnyRow,
    Namespaced,
    check_page,
    check_storage,
    entries_that_fit,
    retrieved,
    seen_from,
    upsert,
)
from steering.store.records import SEARCH_LIMIT, Page, VersionPage, check_labels, check_text, now, read_valid
from steering.store.references import pinned_by_default, refuse_if_used, vector_not_found
from steering.store.tables import VectorNameRow, VectorRow
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, VectorId, VectorSummary, check_name

SMALL = 256 * 1024
"""Bytes below which a vector is decoded on the event loop: starting a thread takes longer."""
DECODED_NUMBERS = 64_000_000
"""Numbers of the decoded vectors that a store caches: requests name the same few, and decoding one takes milliseconds."""
VECTOR_NUMBERS = 10_000
"""What a vector counts besides its directions and maps: of small ones the objects take more memory than the numbers."""
VERSION_LIMIT = 999_999_999
"""PostgreSQL raises for larger numbers."""
IDENTITY = (VectorRow.namespace, VectorRow.name, VectorRow.version)
LABELS = (*IDENTITY, VectorRow.description, VectorRow.tags, VectorRow.created_at, VectorRow.sha256)
"""Columns that are no part of `content`, all small, under the names they have in VectorSummary."""
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


def decoded_numbers(vector: ConceptVector) -> int:
    """Returns how much of DECODED_NUMBERS a vector takes: of each layer its direction, and both sides of a map."""
    rows = sum(1 if layer.map is None else 1 + 2 * layer.map.rank for layer in vector.layers.values())
    return VECTOR_NUMBERS + rows * vector.d_model


class VectorReads:
    """What the readers of one store share. decoded: by LABELS. waiting: reads that have not begun, joined by who asks
    for the same. locks: of running reads, so that a thousand requests for one vector cost two reads."""

    def __init__(self) -> None:
        self.decoded: LRUCache[tuple[Any, ...], ConceptVector] = LRUCache(DECODED_NUMBERS, getsizeof=decoded_numbers)
        self.waiting: dict[Key, asyncio.Task[ConceptVector]] = {}
        self.locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()


@dataclass(eq=False)
class Vectors(Namespaced):
    """The vectors that a namespace sees. A version number is never assigned twice, even after a delete."""

    reads: VectorReads

    async def put(self, vector: ConceptVector, after: VectorSummary | None = None) -> ConceptVector:
        """Stores the vector as the next version of its name; returns it with version, sha256, created_at and namespace set.
        after: the newest version that the namespace must see, else raises VectorNotFound or NotNewest. Raises StorageFull."""
        stored, columns = await run_in_thread(serialize, vector)

        async def add(connection: AsyncConnection) -> dict[str, Any]:
            if after is not None:
                _check_newest(await self._labels(connection, after.name, None), after)
            await check_storage(connection, self.namespace, self.writer, columns["size"])
            key = {"namespace": self.namespace, "name": vector.name}
            # writers are serialized, so no other reads the same number
            last = await connection.scalar(select(VectorNameRow.last_version).filter_by(**key)) or 0
            version = max(last, await pinned_by_default(connection, self.namespace, vector.name)) + 1
            await connection.run_sync(upsert, VectorNameRow, key, {"last_version": version})
            place = {"namespace": self.namespace, "version": version, "created_at": now()}
            await connection.execute(insert(VectorRow).values({**columns, **place, "created_by": self.writer.key}))
            return place

        place = await self.database.write(add)
        return await run_in_thread(lambda: replace(stored, **place))  # checks the numbers of every layer

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """Returns the newest or the given version, digest checked. Raises VectorNotFound, StoreCorrupt."""
        _check_version(name, version)
        key = (self.namespace, name, version)
        task = self.reads.waiting.get(key)
        if task is None:
            task = self.reads.waiting[key] = asyncio.create_task(self._get(key))
            task.add_done_callback(retrieved)
        return await asyncio.shield(task)

    async def _get(self, key: Key) -> ConceptVector:
        lock = self.reads.locks.setdefault(key, asyncio.Lock())
        async with lock:
            del self.reads.waiting[key]
            return await self._read(*key[1:])

    async def _read(self, name: str, version: int | None) -> ConceptVector:
        async def read(connection: AsyncConnection) -> tuple[dict[str, Any], ConceptVector | bytes] | None:
            row = await self._labels(connection, name, version)
            if row is None:
                return None
            labels = _labels_of(row)
            vector = self.reads.decoded.get(tuple(labels.values()))
            if vector is not None:
                return labels, vector
            identity = (row.namespace, row.name, row.version)
            content = await connection.scalar(select(VectorRow.content).where(tuple_(*IDENTITY) == identity))
            # None where it was deleted since its labels were read: on PostgreSQL each statement has a snapshot of its own
            return None if content is None else (labels, bytes(content))

        stored = await self.database.read(read)
        if stored is None:
            raise vector_not_found(name, version)
        labels, content = stored
        if isinstance(content, ConceptVector):
            return content
        small = len(content) <= SMALL
        vector = deserialize(labels, content) if small else await run_in_thread(deserialize, labels, content)
        if decoded_numbers(vector) <= self.reads.decoded.maxsize:
            self.reads.decoded[tuple(labels.values())] = vector
        return vector

    async def find(
        self,
        limit: int = 50,
        cursor: str | None = None,
        *,
        tag: str | None = None,
        method: str | None = None,
        search: str | None = None,
    ) -> Page[VectorSummary]:
        """Lists the newest version of each visible name. A page has fewer than `limit` where their metadata is large.
        tag, method, search: what must match; `search` is a literal substring of name or description. Raises InvalidRequest or
        LimitExceeded for one that nothing stored could match."""
        wanted = _conditions_of(tag, method, search)
        query = select(*IDENTITY, SIZE).where(NEWEST, seen_from(VectorRow, self.namespace), *wanted)
        page, following = await self.database.page(query, VectorRow.name, "vector", limit, cursor)
        vectors, damaged = await self._summaries(page, VectorRow.name)
        return Page(vectors, following, damaged)

    async def names(self, limit: int | None = None) -> tuple[str, ...]:
        """Returns the visible names in their order, the first `limit` of them. Reads nothing else."""
        seen = select(VectorRow.name).where(seen_from(VectorRow, self.namespace))
        rows = await self.database.rows(seen.distinct().order_by(VectorRow.name).limit(limit))
        return tuple(row.name for row in rows)

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
        """Lists the versions of a name, those below `before`, which may be none. Raises VectorNotFound."""
        query = select(*IDENTITY, SIZE).where(seen_from(VectorRow, self.namespace), VectorRow.name == check_name(name))
        query = query.order_by(VectorRow.version.desc()).limit(check_page(limit))
        if before is not None:
            query = query.where(VectorRow.version < before)
        listed = await self.database.rows(query)
        if not listed:
            if before is None:
                raise vector_not_found(name, None)
            return VersionPage("", (), None)
        page = listed[: entries_that_fit(row.bytes for row in listed)]
        versions, damaged = await self._summaries(page, VectorRow.version.desc())
        oldest = page[-1]
        return VersionPage(oldest.namespace, versions, oldest.version if oldest.version > 1 else None, damaged)

    async def delete(
        self, name: str, force: bool = False, version: int | None = None, *, documents_too: bool = True
    ) -> None:
        """Deletes all versions, or one. Raises VectorNotFound, or VectorInUse while a profile, a default or a document names it.
        force: although a profile or a default names it. documents_too: and although a document, such as the policy, does."""
        _check_version(name, version)

        async def remove(connection: AsyncConnection) -> None:
            if not (force and documents_too):
                await refuse_if_used(connection, self.namespace, name, version, only_documents=force)
            chosen = self._own(name) if version is None else and_(self._own(name), VectorRow.version == version)
            if (await connection.execute(delete(VectorRow).where(chosen))).rowcount == 0:
                raise vector_not_found(name, version)

        await self.database.write(remove, when_full=True)

    def _own(self, name: str) -> ColumnElement[bool]:
        return and_(VectorRow.namespace == self.namespace, VectorRow.name == name)

    async def _labels(self, connection: AsyncConnection, name: str, version: int | None) -> AnyRow | None:
        """Returns the LABELS of the newest or the given version that is seen here, None where there is none."""
        query = select(*LABELS).where(seen_from(VectorRow, self.namespace), VectorRow.name == name)
        if version is not None:
            query = query.where(VectorRow.version == version)
        return (await connection.execute(query.order_by(VectorRow.version.desc()).limit(1))).first()

    async def _summaries(
        self, listed: Sequence[AnyRow], order: Any
    ) -> tuple[tuple[VectorSummary, ...], tuple[str, ...]]:
        """Returns the vectors of an IDENTITY without their directions, and the ids of those whose metadata is damaged."""
        chosen = tuple_(*IDENTITY).in_([row[:3] for row in listed])
        rows = await self.database.rows(select(*LABELS, VectorRow.metadata_json).where(chosen).order_by(order))
        vectors, damaged = await run_in_thread(read_valid, _summary, rows)
        return vectors, tuple(str(VectorId(row.name, row.version)) for row in damaged)


def _check_version(name: str, version: int | None) -> None:
    """Raises InvalidRequest for what is no name, VectorNotFound for a number that no version has."""
    check_name(name)
    if version is not None and not 0 < version <= VERSION_LIMIT:
        raise vector_not_found(name, version)


def _check_newest(newest: AnyRow | None, after: VectorSummary) -> None:
    if newest is None:
        raise vector_not_found(after.name, None)
    if (newest.namespace, newest.version) != (after.namespace, after.version):
        there = f"{VectorId(newest.name, newest.version)} of namespace {newest.namespace!r}"
        raise NotNewest(
            f"the newest version is {there}, not {after.id} of namespace {after.namespace!r}", param="version"
        )


def _labels_of(row: AnyRow) -> dict[str, Any]:
    """Returns LABELS as fields of a VectorSummary."""
    return {column.key: getattr(row, column.key) for column in LABELS} | {"tags": tuple(row.tags.split())}


def _conditions_of(tag: str | None, method: str | None, search: str | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if tag is not None:
        conditions.append(VectorRow.tags.contains(f" {check_name(tag, 'tag')} ", autoescape=True))
    if method is not None:
        conditions.append(VectorRow.method == check_name(method, "method"))
    if search is not None:
        check_text(search, "search", SEARCH_LIMIT)
        text = search.casefold()
        in_name = VectorRow.name.contains(text, autoescape=True)
        conditions.append(or_(in_name, VectorRow.searched.contains(text, autoescape=True)))
    return conditions


def _join_tags(tags: tuple[str, ...]) -> str:
    """Writes tags so that each stands between spaces, where a search finds it."""
    return f" {' '.join(tags)} " if tags else ""


def serialize(vector: ConceptVector) -> tuple[ConceptVector, dict[str, Any]]:
    """Returns the vector as it will be read, so that nothing is stored that could not be read, and its columns.
    Both lack a namespace, a version and a date. Raises InvalidRequest or LimitExceeded."""
    check_labels(vector.description, vector.tags)
    content = encode(vector, labels=False)
    labels: dict[str, Any] = {"description": vector.description, "tags": vector.tags, "sha256": digest(content)}
    stored = replace(decode(content, name=vector.name, limits=OWN), **labels)
    texts = {"tags": _join_tags(vector.tags), "searched": vector.description.casefold()}
    metadata = {"name": vector.name, "method": vector.method, "metadata_json": write_metadata(vector, labels=False)}
    return stored, {**labels, **texts, **metadata, "size": len(content), "content": content}


def deserialize(labels: dict[str, Any], content: bytes) -> ConceptVector:
    """Returns the vector. Raises StoreCorrupt when the bytes are not those that were stored."""
    vector_id = str(VectorId(labels["name"], labels["version"]))
    if digest(content) != labels["sha256"]:
        raise StoreCorrupt(f"the bytes of vector {vector_id} do not match their SHA-256; restore it or delete it")
    try:
        return replace(decode(content, name=labels["name"], limits=OWN), **labels)
    except (InvalidRequest, LimitExceeded, UnsupportedFormat) as error:
        raise StoreCorrupt(f"the bytes of vector {vector_id} cannot be read: {error.message}") from error


def _summary(row: AnyRow) -> VectorSummary:
    """Reads a vector without its directions from LABELS and its metadata. Raises StoreCorrupt."""
    try:
        metadata = read_stored_metadata(row.metadata_json)
    except InvalidRequest as error:
        vector_id = str(VectorId(row.name, row.version))
        raise StoreCorrupt(f"the metadata of vector {vector_id} cannot be read: {error.message}") from error
    layers = {int(layer): numbers for layer, numbers in metadata.layers.items()}
    return VectorSummary(**_labels_of(row), **metadata.shared_fields(), layers=layers)
