"""Links: saved states of views of the playground."""

import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.errors import InvalidRequest, LinkNotFound
from steering.schemas.resources import LinkAnswer, LinkState, link_url
from steering.store.database import Namespaced, check_count, check_storage
from steering.store.records import now, read_record
from steering.store.tables import LinkRow
from steering.strict_json import dump_json
from steering.threads import run_in_thread
from steering.vectors import check_name

LINK_ID = re.compile(r"[a-z2-7]{16}")
"""What an id has to match in full."""


class Links(Namespaced):
    """The links of one namespace. They are made to be shared, so reading needs the id and no namespace."""

    async def put(self, link_id: str, view: str, state: Mapping[str, Any]) -> LinkAnswer:
        """Stores the state of a view under an id that is not in use. Raises InvalidRequest, StorageFull."""
        if not LINK_ID.fullmatch(link_id):
            raise InvalidRequest(f"{link_id[:80]!r} is not a link id: 16 letters a-z and digits 2-7", param="id")
        check_name(view, "view")
        text = await run_in_thread(dump_json, dict(state), "state")
        labels = {"id": link_id, "view": view, "created_at": now(), "namespace": self.namespace}
        row = {**labels, "created_by": self.writer.key, "size": len(text), "state": text}

        async def add(connection: AsyncConnection) -> LinkAnswer:
            await check_storage(connection, self.namespace, self.writer, len(text))
            await check_count(connection, LinkRow, self._owned(self.writer.key), self.writer.max_links, "key")
            await connection.execute(insert(LinkRow).values(row))
            return LinkAnswer(**labels, bytes=len(text), url=link_url(view, link_id))

        return await self.database.write(add)

    async def get(self, link_id: str) -> LinkState:
        """Returns the link of that id, of any namespace. Raises LinkNotFound."""
        query = select(LinkRow.id, LinkRow.view, LinkRow.created_at, LinkRow.state).where(LinkRow.id == link_id)
        rows = await self.database.rows(query) if LINK_ID.fullmatch(link_id) else []
        if not rows:
            raise _not_found(link_id)
        row = rows[0]._mapping
        state = read_record(row["state"], f"link {link_id}") or {}
        return LinkState.model_validate({**row, "state": state, "url": link_url(row["view"], link_id)})

    async def find(
        self, owner: str | None, limit: int = 50, cursor: str | None = None
    ) -> tuple[list[LinkAnswer], str | None]:
        """Lists links of this namespace without their states, newest first. owner: the name of a key, None for every key."""
        columns = (LinkRow.id, LinkRow.view, LinkRow.size.label("bytes"), LinkRow.created_at, LinkRow.namespace)
        query = select(*columns).where(*self._owned(owner))
        rows, following = await self.database.page(query, LinkRow.position, "link", limit, cursor)
        links = ({**row._mapping, "url": link_url(row.view, row.id)} for row in rows)
        return list(map(LinkAnswer.model_validate, links)), following

    async def delete(self, link_id: str, owner: str | None) -> None:
        """Deletes a link of this namespace. Raises LinkNotFound, also for a link of another owner."""
        own = delete(LinkRow).where(LinkRow.id == link_id, *self._owned(owner))
        if not LINK_ID.fullmatch(link_id) or not await self.database.change(own, when_full=True):
            raise _not_found(link_id)

    def _owned(self, owner: str | None) -> list[ColumnElement[bool]]:
        in_namespace = LinkRow.namespace == self.namespace
        return [in_namespace] if owner is None else [in_namespace, LinkRow.created_by == owner]


def _not_found(link_id: str) -> LinkNotFound:
    message = f"there is no link {link_id[:80]!r}: it was deleted, or saved on another server"
    return LinkNotFound(message, param="link_id")
