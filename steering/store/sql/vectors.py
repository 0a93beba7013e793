"""SqlVectors: the VectorStore on a database. A put and its blob are one transaction; listings never read a blob."""

from collections.abc import Sequence
from typing import Any, final

from sqlalchemy import ColumnElement, and_, delete, exists, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.namespaces import SHARED
from steering.spec import SteeringSpec
from steering.store.base import VectorFilter, VectorPage, Writer
from steering.store.formats.serialization import read_steering
from steering.store.formats.stored_vector import (
    StoredVector,
    deserialize,
    is_version,
    not_found,
    serialize,
    summarize_valid,
    written,
)
from steering.store.rules import (
    check_changes,
    check_filter,
    check_page,
    fold,
    make_cursor,
    read_cursor,
    refuse_if_used,
)
from steering.store.sql.database import Database
from steering.store.sql.links import check_storage
from steering.store.sql.tables import DefaultSteeringRow, ProfileRow, VectorNameRow, VectorRow
from steering.store.sql.vector_reads import VectorReads
from steering.store.sql.vector_rows import (
    NEWEST,
    SUMMARY,
    conditions_of,
    from_summary_row,
    is_visible,
    join_tags,
    to_row,
)
from steering.store.summary import VectorSummary
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, check_name


@final
class SqlVectors:
    """See `steering.store.base.VectorStore`. Encoding, large decodings and listings run in a thread."""

    def __init__(self, database: Database, reads: VectorReads, namespace: str, writer: Writer) -> None:
        self._database, self._reads = database, reads
        self._namespace, self._writer = namespace, writer

    async def put(self, vector: ConceptVector) -> ConceptVector:
        """See VectorStore.put."""
        serialized = await run_in_thread(serialize, vector)

        async def add(connection: AsyncConnection) -> StoredVector:
            await check_storage(connection, self._namespace, self._writer, len(serialized.content))
            version = await self._next_version(connection, serialized.name)
            stored = written(serialized, version, self._writer, self._namespace)
            await connection.execute(insert(VectorRow).values(to_row(stored)))
            return stored

        return await run_in_thread(deserialize, await self._database.write(add))

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """See VectorStore.get."""
        check_name(name)
        if version is not None and not is_version(version):
            raise not_found(name, version)
        found = await self._reads.get(self._namespace, name, version)
        if found is None:
            raise not_found(name, version)
        return found

    async def find(self, where: VectorFilter, limit: int = 50, cursor: str | None = None) -> VectorPage:
        """See VectorStore.find."""
        query = select(*SUMMARY).where(NEWEST, is_visible(self._namespace), *conditions_of(check_filter(where)))
        query = query.order_by(VectorRow.name).limit(check_page(limit) + 1)
        if cursor is not None:
            query = query.where(VectorRow.name > read_cursor("vector", cursor))
        rows = await self._database.rows(query)
        vectors = await run_in_thread(_summaries, rows[:limit])
        return VectorPage(vectors, make_cursor("vector", rows[limit - 1][1]) if len(rows) > limit else None)

    async def describe(self, name: str, description: str | None, tags: tuple[str, ...] | None) -> ConceptVector:
        """See VectorStore.describe."""
        check_name(name)
        check_changes(description, tags)
        changes: dict[str, str] = {}
        if description is not None:
            changes |= {"description": description, "searched": fold(description)}
        if tags is not None:
            changes["tags"] = join_tags(tags)

        async def change(connection: AsyncConnection) -> None:
            own = self._own(name)
            if changes:
                found = (await connection.execute(update(VectorRow).where(own).values(changes))).rowcount
            else:
                found = await connection.scalar(select(func.count()).select_from(VectorRow).where(own)) or 0
            if not found:
                raise not_found(name, None)

        await self._database.write(change)
        return await self.get(name)

    async def versions(self, name: str, limit: int = 50, before: int | None = None) -> tuple[VectorSummary, ...]:
        """See VectorStore.versions."""
        query = select(*SUMMARY).where(is_visible(self._namespace), VectorRow.name == check_name(name))
        query = query.order_by(VectorRow.version.desc()).limit(check_page(limit))
        if before is not None:
            query = query.where(VectorRow.version < before)
        rows = await self._database.rows(query)
        if not rows and before is None:
            raise not_found(name, None)
        return await run_in_thread(_summaries, rows)

    async def delete(self, name: str, force: bool = False, version: int | None = None) -> None:
        """See VectorStore.delete."""
        check_name(name)
        if version is not None and not is_version(version):
            raise not_found(name, version)

        async def remove(connection: AsyncConnection) -> None:
            if not force:
                await self._refuse_if_used(connection, name, version)
            chosen = self._own(name) if version is None else and_(self._own(name), VectorRow.version == version)
            deleted = await connection.execute(delete(VectorRow).where(chosen))
            if deleted.rowcount == 0:
                raise not_found(name, version)

        await self._database.write(remove)

    def _own(self, name: str) -> ColumnElement[bool]:
        return and_(VectorRow.namespace == self._namespace, VectorRow.name == name)

    async def _next_version(self, connection: AsyncConnection, name: str) -> int:
        """Records and returns the next version number. Writers are serialized, so no other reads the same number."""
        own = and_(VectorNameRow.namespace == self._namespace, VectorNameRow.name == name)
        last = await connection.scalar(select(VectorNameRow.last_version).where(own))
        if last is None:
            first = {"namespace": self._namespace, "name": name, "last_version": 1}
            await connection.execute(insert(VectorNameRow).values(first))
            return 1
        await connection.execute(update(VectorNameRow).where(own).values(last_version=last + 1))
        return int(last) + 1

    async def _refuse_if_used(self, connection: AsyncConnection, name: str, version: int | None) -> None:
        count = await connection.scalar(select(func.count()).select_from(VectorRow).where(self._own(name)))
        users: dict[str, SteeringSpec] = {}
        hidden: list[SteeringSpec] = []
        for row in (ProfileRow, DefaultSteeringRow):
            label = ProfileRow.name if row is ProfileRow else DefaultSteeringRow.namespace
            query = select(row.namespace, label, row.steering).where(self._may_use(row, name)).order_by(label)
            for namespace, of, text in await connection.execute(query):
                user = f"profile {of!r}" if row is ProfileRow else "the default steering"
                if namespace == self._namespace:
                    users[user] = read_steering(text, user)
                else:
                    hidden.append(read_steering(text, "another namespace"))
        refuse_if_used(name, users, hidden, version, only=count == 1)

    def _may_use(self, row: type[ProfileRow] | type[DefaultSteeringRow], name: str) -> ColumnElement[bool]:
        """Selects steerings that see the name as a vector of this namespace: others see that of `shared` unless they have one."""
        if self._namespace != SHARED:
            return row.namespace == self._namespace
        has_own = exists().where(VectorRow.namespace == row.namespace, VectorRow.name == name).correlate(row)
        return (row.namespace == SHARED) | ~has_own


def _summaries(rows: Sequence[Sequence[Any]]) -> tuple[VectorSummary, ...]:
    return summarize_valid(map(from_summary_row, rows))
