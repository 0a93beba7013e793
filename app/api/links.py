"""/v1/links: states of the playground's views, saved to be shared."""

import base64
import secrets
from typing import Annotated

from fastapi import APIRouter, Query

from app.api.context import Context, ContextDep
from app.core.admission import check_limit
from app.core.requests import ApiRoute
from steering.namespaces import SHARED
from steering.schemas.base import NamespacePageQuery
from steering.schemas.resources import LinkAnswer, LinkPage, LinkRequest, LinkState
from steering.strict_json import dump_json
from steering.threads import run_in_thread

ID_BYTES = 10
"""Random bytes of an id: 80 bits are 16 characters in base 32. The id is all that protects a state from other keys."""

router = APIRouter(route_class=ApiRoute, tags=["links"])


@router.post("/v1/links", status_code=201)
async def save(body: LinkRequest, context: ContextDep) -> LinkAnswer:
    """Saves the state of a view of the playground under an id that cannot be guessed."""
    text = await run_in_thread(dump_json, body.state, "state")
    check_limit(len(text), context.settings.max_link_bytes, "bytes of state", "state")
    link_id = base64.b32encode(secrets.token_bytes(ID_BYTES)).decode().lower()
    return await context.store.links.put(link_id, body.view, body.state)


@router.get("/v1/links")
async def find(query: Annotated[NamespacePageQuery, Query()], context: ContextDep) -> LinkPage:
    """Lists the links of the namespace without their states, newest first; in `shared` those of the key, for an admin all."""
    check_limit(query.limit, context.settings.max_page, "entries per page", "limit")
    page, next_cursor = await context.store.links.find(_owner_of(context), query.limit, query.cursor)
    return LinkPage(data=page, next_cursor=next_cursor)


@router.get("/v1/links/{link_id}")
async def read(link_id: str, context: ContextDep) -> LinkState:
    """Returns the state of a link, of any namespace. The vectors that it names are those that the caller sees."""
    return await context.store.links.get(link_id)


@router.delete("/v1/links/{link_id}", status_code=204)
async def delete(link_id: str, context: ContextDep) -> None:
    """Deletes a link of the namespace; in `shared` one of the key, for an admin any."""
    await context.store.links.delete(link_id, _owner_of(context))


def _owner_of(context: Context) -> str | None:
    """Returns whose links the request lists and deletes; None for those of every key of the namespace.

    The keys of a namespace own its links together, so a key that replaces another has those of the former one. `shared` is
    where keys are that have nothing to do with each other: each has its own links there, and an admin all of them.
    """
    everyone = "admin" in context.key.scopes or context.namespace != SHARED
    return None if everyone else context.key.name
