"""SqlVectors: the VectorStore on a database. A put and its blob are one transaction; listings never read a blob."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

from sqlalchemy import ColumnElement, and_, delete, exists, func, insert, not_, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.namespaces import SHARED
from steering.store.base import VectorFilter, VectorPage, VectorStore, VersionPage, Writer
from steering.store.formats.stored_vector import (
    StoredVector,
    check_newest,
    check_version,
    deserialize,
    not_found,
    serialize,
    summarize_valid,
    version_page,
)
from steering.store.rules import (
    OTHERS,
    check_filter,
    check_labels,
    check_page,
    entries_that_fit,
    make_cursor,
    names_in_steering,
    now,
    pinned_vectors,
    read_cursor,
    refuse_if_used,
    values_of,
)
from steering.store.sql.database import NamespacePart, upsert
from steering.store.sql.links import check_storage
from steering.store.sql.tables import DefaultSteeringRow, DocumentRow, ProfileRow, VectorNameRow, VectorRow
from steering.store.sql.vector_reads import LABELS, NEWEST, OTHER, VectorReads, from_row, read_labels
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, VectorId, VectorSummary, check_name

SUMMARY = (*LABELS, VectorRow.metadata_json)
"""Columns of a listing: everything but the directions."""
IDENTITY = (VectorRow.namespace, VectorRow.name, VectorRow.version)
SIZE = func.length(VectorRow.metadata_json).label("bytes")


@final
class SqlVectors(NamespacePart, VectorStore):
    """The VectorStore on a database. Encoding, large decodings and listings run in a thread."""

    def __init__(self, reads: VectorReads, namespace: str, writer: Writer) -> None:
        super().__init__(reads.database, namespace, writer)
        self._reads = reads

    async def put(self, vector: ConceptVector, after: VectorSummary | None = None) -> ConceptVector:
        """See VectorStore.put."""
        serialized = await run_in_thread(serialize, vector)

        async def add(connection: AsyncConnection) -> StoredVector:
            if after is not None:
                key = (self._namespace, after.name, None)
                check_newest((await read_labels(connection, [key])).get(key), after)
            await check_storage(connection, self._namespace, self._writer, len(serialized.content))
            version = await self._next_version(connection, serialized.name)
            who: dict[str, Any] = {"namespace": self._namespace, "created_by": self._writer.key}
            stored = replace(serialized, version=version, created_at=now(), **who)
            await connection.execute(insert(VectorRow).values(_to_row(stored)))
            return stored

        return await run_in_thread(deserialize, await self._database.write(add))

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """See VectorStore.get."""
        check_version(name, version)
        found = await self._reads.get(self._namespace, name, version)
        if found is None:
            raise not_found(name, version)
        return found

    async def find(self, where: VectorFilter, limit: int = 50, cursor: str | None = None) -> VectorPage:
        """See VectorStore.find."""
        query = select(*IDENTITY, SIZE).where(NEWEST, self._visible(), *_conditions_of(check_filter(where)))
        query = query.order_by(VectorRow.name).limit(check_page(limit) + 1)
        if cursor is not None:
            query = query.where(VectorRow.name > read_cursor("vector", cursor))
        listed = await self._database.rows(query)
        count = entries_that_fit(row.bytes for row in listed[:limit])
        chosen = tuple_(*IDENTITY).in_([row[:3] for row in listed[:count]])
        rows = await self._database.rows(select(*SUMMARY).where(chosen).order_by(VectorRow.name))
        vectors, damaged = await run_in_thread(summarize_valid, map(from_row, rows))
        following = make_cursor("vector", listed[count - 1].name) if len(listed) > count else None
        return VectorPage(vectors, following, damaged)

    async def names(self, limit: int | None = None) -> tuple[str, ...]:
        """See VectorStore.names."""
        query = select(VectorRow.name).where(self._visible()).distinct().order_by(VectorRow.name).limit(limit)
        return tuple(row.name for row in await self._database.rows(query))

    async def describe(self, name: str, description: str | None, tags: tuple[str, ...] | None) -> ConceptVector:
        """See VectorStore.describe."""
        check_name(name)
        check_labels(description, tags)
        changes = {  # what is not given is set to itself
            "description": VectorRow.description if description is None else description,
            "searched": VectorRow.searched if description is None else description.casefold(),
            "tags": VectorRow.tags if tags is None else _join_tags(tags),
        }
        if not await self._database.change(update(VectorRow).where(self._own(name)).values(changes)):
            raise not_found(name, None)
        return await self.get(name)

    async def versions(self, name: str, limit: int = 50, before: int | None = None) -> VersionPage:
        """See VectorStore.versions."""
        query = select(*IDENTITY, SIZE).where(self._visible(), VectorRow.name == check_name(name))
        query = query.order_by(VectorRow.version.desc()).limit(check_page(limit))
        if before is not None:
            query = query.where(VectorRow.version < before)
        listed = await self._database.rows(query)
        if not listed and before is None:
            raise not_found(name, None)
        count = min(len(listed), entries_that_fit(row.bytes for row in listed))
        chosen = tuple_(*IDENTITY).in_([row[:3] for row in listed[:count]])
        rows = await self._database.rows(select(*SUMMARY).where(chosen).order_by(VectorRow.version.desc()))
        return await run_in_thread(version_page, list(map(from_row, rows)), min(limit, count))

    async def namespace_of(self, name: str) -> str:
        """See VectorStore.namespace_of."""
        query = select(VectorRow.namespace).where(self._visible(), VectorRow.name == check_name(name)).limit(1)
        rows = await self._database.rows(query)
        if not rows:
            raise not_found(name, None)
        return str(rows[0].namespace)

    async def delete(
        self, name: str, force: bool = False, version: int | None = None, *, documents_too: bool = True
    ) -> None:
        """See VectorStore.delete."""
        check_version(name, version)

        async def remove(connection: AsyncConnection) -> None:
            if not (force and documents_too):
                await self._refuse_if_used(connection, name, version, only_documents=force)
            chosen = self._own(name) if version is None else and_(self._own(name), VectorRow.version == version)
            deleted = await connection.execute(delete(VectorRow).where(chosen))
            if deleted.rowcount == 0:
                raise not_found(name, version)

        await self._database.write(remove, when_full=True)

    def _own(self, name: str) -> ColumnElement[bool]:
        return and_(VectorRow.namespace == self._namespace, VectorRow.name == name)

    def _visible(self) -> ColumnElement[bool]:
        """Selects what the namespace sees: its own vectors, and those of `shared` whose names it does not have itself."""
        own = VectorRow.namespace == self._namespace
        if self._namespace == SHARED:
            return own
        same_name = and_(OTHER.namespace == self._namespace, OTHER.name == VectorRow.name)
        hidden = exists().where(same_name).correlate(VectorRow)
        return or_(own, and_(VectorRow.namespace == SHARED, not_(hidden)))

    async def _next_version(self, connection: AsyncConnection, name: str) -> int:
        """Records and returns the next version number. Writers are serialized, so no other reads the same number."""
        key = {"namespace": self._namespace, "name": name}
        version = (await connection.scalar(select(VectorNameRow.last_version).filter_by(**key)) or 0) + 1
        await connection.run_sync(upsert, VectorNameRow, key, {"last_version": version})
        return version

    async def _refuse_if_used(
        self, connection: AsyncConnection, name: str, version: int | None, *, only_documents: bool
    ) -> None:
        count = await connection.scalar(select(func.count()).select_from(VectorRow).where(self._own(name)))
        texts = names_in_steering(name, version, only=count == 1)
        users: list[str] = []
        steerings = ((ProfileRow, ProfileRow.name), (DefaultSteeringRow, DefaultSteeringRow.namespace))
        for row, label in () if only_documents else steerings:
            query = select(row.namespace, label).where(self._may_use(row, name, texts)).order_by(label)
            for namespace, of in await connection.execute(query):
                own = f"profile {of!r}" if row is ProfileRow else "the default steering"
                users.append(own if namespace == self._namespace else OTHERS)
        if self._namespace == SHARED:
            documents = select(DocumentRow.name, DocumentRow.content).order_by(DocumentRow.name)
            for of, text in await connection.execute(documents):
                named = map(VectorId.parse, pinned_vectors(text))
                if any(one.name == name and version in (None, one.version) for one in named):
                    users.append(f"the {of}")
        refuse_if_used(name, version, users)

    def _may_use(
        self, row: type[ProfileRow] | type[DefaultSteeringRow], name: str, texts: Sequence[str]
    ) -> ColumnElement[bool]:
        """Selects steerings that contain the name and see it as a vector of this namespace: others see that of `shared` unless
        they have one."""
        written = or_(*(row.steering.contains(text, autoescape=True) for text in texts))
        if self._namespace != SHARED:
            return and_(row.namespace == self._namespace, written)
        has_own = exists().where(VectorRow.namespace == row.namespace, VectorRow.name == name).correlate(row)
        return and_((row.namespace == SHARED) | ~has_own, written)


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
