"""Request and response models of /v1/links."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from steering.namespaces import SHARED
from steering.schemas.base import Answer, Page, Request

View: TypeAlias = Literal["compare", "space", "read"]
"""Views of the playground whose state can be saved."""


def link_url(view: str, link_id: str) -> str:
    """Returns the address of a link, relative to that of its server."""
    return f"/#/{view}?link={link_id}"


class LinkRequest(Request):
    """The state of a view of the playground. What is in it is for the playground to know: the server stores it as it is."""

    view: View
    state: Annotated[dict[str, Any], Field(max_length=64)]


class LinkAnswer(Answer):
    """A saved link. url: relative to the server's address. bytes: of its state as JSON."""

    namespace: str = SHARED
    id: str
    view: str
    url: str
    bytes: int
    created_at: str


class LinkState(Answer):
    """A link as whoever has its id reads it."""

    id: str
    view: str
    url: str
    state: dict[str, Any]
    created_at: str


class LinkPage(Page):
    """Newest first, without states."""

    data: list[LinkAnswer]
