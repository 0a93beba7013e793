"""/v1/links: states of the playground's views, saved to be shared."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.http.dependencies import ContextDep
from app.http.request_reading import ApiRoute
from app.services import links
from app.services.limits import check_limit
from app.services.resources import link_answer, link_state
from steering.schemas.base import NamespacePageQuery
from steering.schemas.resources import LinkAnswer, LinkPage, LinkRequest, LinkState

router = APIRouter(route_class=ApiRoute, tags=["links"])


@router.post("/v1/links", status_code=201)
async def save(body: LinkRequest, context: ContextDep) -> LinkAnswer:
    """Saves the state of a view of the playground under an id that cannot be guessed."""
    return link_answer(await links.save(context, body))


@router.get("/v1/links")
async def find(query: Annotated[NamespacePageQuery, Query()], context: ContextDep) -> LinkPage:
    """Lists the links of the namespace without their states, newest first; in `shared` those of the key, for an admin all."""
    check_limit(query.limit, context.settings.max_page, "entries per page", "limit")
    found, next_cursor = await context.store.links.find(links.owner_of(context), query.limit, query.cursor)
    return LinkPage(data=[link_answer(link) for link in found], next_cursor=next_cursor)


@router.get("/v1/links/{link_id}")
async def read(link_id: str, context: ContextDep) -> LinkState:
    """Returns the state of a link, of any namespace. The vectors that it names are those that the caller sees."""
    return link_state(await context.store.links.get(link_id))


@router.delete("/v1/links/{link_id}", status_code=204)
async def delete(link_id: str, context: ContextDep) -> None:
    """Deletes a link of the namespace; in `shared` one of the key, for an admin any."""
    await context.store.links.delete(link_id, links.owner_of(context))
