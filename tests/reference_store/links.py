"""ReferenceLinks: the LinkStore of the ReferenceStore."""

from dataclasses import replace
from typing import final

from steering.errors import InternalError
from steering.store.base import Link, Writer
from steering.store.formats.serialization import check_link, link_not_found, read_record
from steering.store.formats.stored_vector import check_link_count, check_quota
from steering.store.rules import check_page, make_cursor, now, read_position
from tests.reference_store.vectors import Content


@final
class ReferenceLinks:
    """See `steering.store.base.LinkStore`."""

    def __init__(self, content: Content, namespace: str, writer: Writer) -> None:
        self._content, self._namespace, self._writer = content, namespace, writer

    async def put(self, link: Link) -> Link:
        """See LinkStore.put."""
        text = check_link(link)
        content, owner = self._content, self._writer.key
        check_quota(self._writer, content.stored_bytes(self._namespace, self._writer), len(text))
        check_link_count(self._writer, len(self._owned(owner)))
        if any(link.id == other.id for other in content.links.values()):
            raise InternalError(f"there is a link {link.id!r} already")
        content.last_link += 1
        state = read_record(text, f"link {link.id}")
        stored = replace(link, state=state, size=len(text), owner=owner, created_at=now(), namespace=self._namespace)
        content.links[content.last_link] = stored
        return await self.get(link.id)

    async def get(self, link_id: str) -> Link:
        """See LinkStore.get."""
        for link in self._content.links.values():
            if link.id == link_id:
                return replace(link, state=read_record(check_link(link), f"link {link_id}"))
        raise link_not_found(link_id)

    async def find(
        self, owner: str | None, limit: int = 50, cursor: str | None = None
    ) -> tuple[tuple[Link, ...], str | None]:
        """See LinkStore.find."""
        check_page(limit)
        before = self._content.last_link + 1 if cursor is None else read_position("link", cursor)
        found = [one for one in reversed(self._owned(owner)) if one < before]
        page = tuple(replace(self._content.links[one], state=None) for one in found[:limit])
        return page, make_cursor("link", str(found[limit - 1])) if len(found) > limit else None

    async def delete(self, link_id: str, owner: str | None) -> None:
        """See LinkStore.delete."""
        for position in self._owned(owner):
            if self._content.links[position].id == link_id:
                del self._content.links[position]
                return
        raise link_not_found(link_id)

    def _owned(self, owner: str | None) -> list[int]:
        """Returns the positions of the links of an owner in this namespace, None for every owner."""
        return [
            position
            for position, link in self._content.links.items()
            if link.namespace == self._namespace and owner in (None, link.owner)
        ]
