"""SqlLinks: the LinkStore on a database, and the bytes that a key has stored in vectors, profiles and links."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

from sqlalchemy import ColumnElement, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.store.base import Link, LinkStore, Writer
from steering.store.formats.serialization import LINK_ID, check_link, link_not_found, read_record
from steering.store.formats.stored_vector import check_link_count, check_quota
from steering.store.rules import now
from steering.store.sql.database import AnyRow, NamespacePart
from steering.store.sql.tables import JobOutputRow, JobRow, LinkRow, ProfileRow, VectorRow

COLUMNS = (LinkRow.id, LinkRow.view, LinkRow.size, LinkRow.created_by, LinkRow.created_at, LinkRow.namespace)


@final
class SqlLinks(NamespacePart, LinkStore):
    """The LinkStore on a database."""

    async def put(self, link: Link) -> Link:
        """See LinkStore.put."""
        state = check_link(link)
        owner, namespace = self._writer.key, self._namespace

        async def add(connection: AsyncConnection) -> Link:
            await check_storage(connection, namespace, self._writer, len(state))
            count = await connection.scalar(select(func.count(LinkRow.id)).where(*self._owned(owner))) or 0
            check_link_count(self._writer, count)
            labels: dict[str, Any] = {"size": len(state), "created_at": now(), "namespace": namespace}
            row = {"id": link.id, "view": link.view, "created_by": owner, "state": state, **labels}
            await connection.execute(insert(LinkRow).values(row))
            return replace(link, owner=owner, **labels)

        return await self._database.write(add)

    async def get(self, link_id: str) -> Link:
        """See LinkStore.get."""
        query = select(*COLUMNS, LinkRow.state).where(LinkRow.id == link_id)
        rows = await self._database.rows(query) if LINK_ID.fullmatch(link_id) else []
        if not rows:
            raise link_not_found(link_id)
        return _link(rows[0], read_record(rows[0].state, f"link {link_id}"))

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
        if not LINK_ID.fullmatch(link_id) or not await self._database.change(own, when_full=True):
            raise link_not_found(link_id)

    def _owned(self, owner: str | None) -> list[ColumnElement[bool]]:
        in_namespace = LinkRow.namespace == self._namespace
        return [in_namespace] if owner is None else [in_namespace, LinkRow.created_by == owner]


def _link(row: AnyRow, state: Mapping[str, Any] | None = None) -> Link:
    return Link(row.id, row.view, state, row.size, row.created_by, row.created_at, row.namespace)


async def check_storage(connection: AsyncConnection, namespace: str, writer: Writer, size: int) -> None:
    """Raises StorageFull when what a writer has in a namespace would take too many bytes with `size` more."""
    if writer.max_bytes is None:
        return
    used = 0
    for row in (VectorRow, ProfileRow, LinkRow, JobRow, JobOutputRow):
        own = (row.namespace == namespace, row.created_by == writer.key)
        used += await connection.scalar(select(func.sum(row.size)).where(*own)) or 0
    check_quota(writer, int(used), size)
