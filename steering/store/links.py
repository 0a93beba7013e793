"""Protocol of links: states of the playground's views that were saved to be shared, each under an id."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Link:
    """A saved state of a view. state: None in listings, which do not read it.

    size: bytes of the state as JSON. owner: the name of the key that saved it. Both, date and namespace: set by the store.
    """

    id: str
    view: str
    state: Mapping[str, Any] | None
    size: int = 0
    owner: str = ""
    created_at: str = ""
    namespace: str = ""


class LinkStore(Protocol):
    """The links of one namespace. They are made to be shared, so reading needs the id and no namespace."""

    async def put(self, link: Link) -> Link:
        """Stores a link under an id that is not in use. Raises StorageFull when the writer has `max_links`, or would have more than `max_bytes`."""
        ...

    async def get(self, link_id: str) -> Link:
        """Returns the link of that id, of any namespace. Raises LinkNotFound."""
        ...

    async def find(
        self, owner: str | None, limit: int = 50, cursor: str | None = None
    ) -> tuple[tuple[Link, ...], str | None]:
        """Lists links of this namespace without their states, newest first. owner: None for those of every key."""
        ...

    async def delete(self, link_id: str, owner: str | None) -> None:
        """Deletes a link of this namespace. Raises LinkNotFound, also for a link of another owner."""
        ...
