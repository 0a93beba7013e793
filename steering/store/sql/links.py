"""SqlLinks: the LinkStore on a database, and the bytes that a key has stored in vectors and links."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

from sqlalchemy import ColumnElement, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.store.base import Writer
from steering.store.formats.serialization import check_link, is_link_id, link_not_found, read_record
from steering.store.formats.stored_vector import check_link_count, check_quota
from steering.store.links import Link
from steering.store.rules import now
from steering.store.sql.database import Database
from steering.store.sql.tables import LinkRow, VectorRow

COLUMNS = (LinkRow.id, LinkRow.view, LinkRow.size, LinkRow.created_by, LinkRow.created_at, LinkRow.namespace)


@final
class SqlLinks:
    """See `steering.store.links.LinkStore`."""

    def __init__(self, database: Database, namespace: str, writer: Writer) -> None:
        self._database, self._namespace, self._writer = database, namespace, writer

    async def put(self, link: Link) -> Link:
        """See LinkStore.put."""
        state = check_link(link)
        owner, namespace = self._writer.key, self._namespace

        async def add(connection: AsyncConnection) -> Link:
            await check_storage(connection, namespace, self._writer, len(state))
            own = (LinkRow.namespace == namespace, LinkRow.created_by == owner)
            check_link_count(self._writer, await connection.scalar(select(func.count(LinkRow.id)).where(*own)) or 0)
            stored = replace(link, size=len(state), owner=owner, created_at=now(), namespace=namespace)
            labels = {name: getattr(stored, name) for name in ("id", "view", "size", "created_at", "namespace")}
            await connection.execute(insert(LinkRow).values({**labels, "created_by": owner, "state": state}))
            return stored

        return await self._database.write(add)

    async def get(self, link_id: str) -> Link:
        """See LinkStore.get."""
        query = select(*COLUMNS, LinkRow.state).where(LinkRow.id == link_id)
        rows = await self._database.rows(query) if is_link_id(link_id) else []
        if not rows:
            raise link_not_found(link_id)
        return replace(_link(rows[0][:-1]), state=read_record(rows[0][-1], f"link {link_id}"))

    async def find(
        self, owner: str | None, limit: int = 50, cursor: str | None = None
    ) -> tuple[tuple[Link, ...], str | None]:
        """See LinkStore.find."""
        query = select(*COLUMNS).where(*self._owned(owner))
        rows, following = await self._database.newest(query, LinkRow.position, "link", limit, cursor)
        return tuple(map(_link, rows)), following

    async def delete(self, link_id: str, owner: str | None) -> None:
        """See LinkStore.delete."""
        own = delete(LinkRow).where(LinkRow.id == link_id, *self._owned(owner))
        if not is_link_id(link_id) or not await self._database.change(own):
            raise link_not_found(link_id)

    def _owned(self, owner: str | None) -> list[ColumnElement[bool]]:
        in_namespace = LinkRow.namespace == self._namespace
        return [in_namespace] if owner is None else [in_namespace, LinkRow.created_by == owner]


def _link(row: Sequence[Any]) -> Link:
    link_id, view, size, owner, created_at, namespace = row
    return Link(link_id, view, None, size, owner, created_at, namespace)


async def prune_links(database: Database, before: str) -> int:
    """Deletes the links of every namespace that were saved before a time; returns how many."""
    return await database.change(delete(LinkRow).where(LinkRow.created_at < before))


async def check_storage(connection: AsyncConnection, namespace: str, writer: Writer, size: int) -> None:
    """Raises StorageFull when a writer's vectors and links in a namespace would take too many bytes with `size` more."""
    if writer.max_bytes is None:
        return
    used = 0
    for row in (VectorRow, LinkRow):
        own = (row.namespace == namespace, row.created_by == writer.key)
        used += await connection.scalar(select(func.sum(row.size)).where(*own)) or 0
    check_quota(writer, int(used), size)
