"""What callers store by name or id besides vectors: /v1/profiles (named strengths), /v1/steering (the default steering), both checked against
the limits and the loaded model, and /v1/links (states of the playground's views, saved to be shared)."""

import base64
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from app.api.context import Context, ContextDep
from app.api.limits import storable
from app.api.policy import DefaultSteering, not_applied
from app.core.admission import check_limit, foreign, page_size
from app.core.answers import damage_warnings, json_in_thread
from app.core.errors import InsufficientScope
from app.core.requests import ApiRoute
from steering.errors import ProfileNotFound, SteeringError, StoreCorrupt, Unavailable
from steering.namespaces import SHARED, visible_from
from steering.schemas import resources
from steering.schemas.base import NamespacePageQuery
from steering.schemas.steering import DefaultSteering as DefaultSteeringRequest
from steering.schemas.steering import DefaultSteeringAnswer
from steering.spec import InterventionSpec, SteeringSpec, pinned, vector_names
from steering.strict_json import dump_json
from steering.threads import run_in_thread
from steering.vectors import VectorId, check_name

ID_BYTES = 10
"""Random bytes of a link's id: 80 bits are 16 characters in base 32. The id is all that protects a state from other keys."""

router = APIRouter(route_class=ApiRoute, tags=["profiles"])
links = APIRouter(route_class=ApiRoute, tags=["links"])


@router.put("/v1/profiles/{name}", response_model_exclude_unset=True)
async def put(name: str, body: resources.ProfileRequest, context: ContextDep) -> resources.ProfileAnswer:
    """Stores a profile under a name. Its steering must be valid for the loaded model."""
    check_name(name)
    spec = await _checked(context, body.interventions)
    return await context.store.profiles.put(name, spec, body.description)


@router.get("/v1/profiles", response_model=resources.ProfileList)
async def find(query: Annotated[NamespacePageQuery, Query()], context: ContextDep) -> Response:
    """Lists profiles, by name."""
    limit = page_size(query, context.settings.max_page)
    page = await context.store.profiles.find(limit, query.cursor)
    data, warnings = list(page.items), damage_warnings(page.damaged)
    return await json_in_thread(
        lambda: resources.ProfileList(data=data, next_cursor=page.next_cursor, warnings=warnings), exclude_unset=True
    )


@router.get("/v1/profiles/{name}", response_model_exclude_unset=True)
async def read(name: str, context: ContextDep) -> resources.ProfileAnswer:
    """Returns one profile."""
    return await context.profile(check_name(name))


@router.delete("/v1/profiles/{name}", status_code=204)
async def delete(name: str, context: ContextDep) -> None:
    """Deletes a profile. The vectors it names are kept."""
    try:
        await context.store.profiles.delete(check_name(name))
    except ProfileNotFound:
        owner = (await context.profile(name)).namespace
        raise foreign("profile", name, owner, context.namespace) from None


@router.put("/v1/steering", response_model_exclude_unset=True)
async def put_default(body: DefaultSteeringRequest, context: ContextDep) -> DefaultSteeringAnswer:
    """Sets the steering of requests that name none. It must be valid for the loaded model."""
    spec, store = await _checked(context, body.interventions), context.store
    keys = {name: VectorId.parse(name) for name in vector_names(spec)}
    # every vector is pinned to its version, so that a new version of a name changes nothing
    names = {name: (await store.vectors.get(key.name, key.version)).id for name, key in keys.items()}
    spec = pinned(spec, names)
    await context.state[DefaultSteering].put(spec, store, context.engine)
    return await _default_answer(context, context.namespace, spec)


@router.get("/v1/steering", response_model_exclude_unset=True)
async def read_default(context: ContextDep) -> DefaultSteeringAnswer:
    """Returns the default steering; null when none is set."""
    for namespace in visible_from(context.namespace):
        try:
            spec = await context.state.store.in_namespace(namespace).profiles.default()
        except StoreCorrupt as error:
            return DefaultSteeringAnswer(namespace=namespace, interventions=None, warnings=(not_applied(error),))
        if spec is not None:
            return await _default_answer(context, namespace, spec)
    return DefaultSteeringAnswer(namespace=context.namespace, interventions=None)


@router.delete("/v1/steering", status_code=204)
async def delete_default(context: ContextDep) -> None:
    """Clears the default steering."""
    await context.state[DefaultSteering].put(None, context.store, context.engine)


async def _checked(context: Context, interventions: Sequence[InterventionSpec]) -> SteeringSpec:
    """Returns steering that may be stored. Raises InsufficientScope for a key that may not list interventions, unless it is an
    admin's by the policy alone: it could name what it stores here."""
    limits = context.key.limits if "admin" in context.key.scopes else context.limits
    if limits.own_steering != "any":
        raise InsufficientScope("this key may not store interventions of its own", param="interventions")
    spec = storable(interventions)
    try:
        await context.resolve(interventions)
    except SteeringError as error:
        error.param = "interventions" if error.param == "steering" else error.param
        raise
    return spec


async def _default_answer(context: Context, namespace: str, spec: SteeringSpec) -> DefaultSteeringAnswer:
    """Describes a default with the warnings that requests under it get, also from the policy if it can be applied."""
    warnings = context.state[DefaultSteering].warnings_of(namespace, spec)
    if warnings is not None:
        with suppress(Unavailable):
            warnings = (await context.plan(None)).warnings
    return DefaultSteeringAnswer(namespace=namespace, interventions=spec.interventions, warnings=warnings or ())


@links.post("/v1/links", status_code=201, name="save")
async def save_link(body: resources.LinkRequest, context: ContextDep) -> resources.LinkAnswer:
    """Saves the state of a view of the playground under an id that cannot be guessed."""
    text = await run_in_thread(dump_json, body.state, "state")
    check_limit(len(text), context.settings.max_link_bytes, "bytes of state", "state")
    link_id = base64.b32encode(secrets.token_bytes(ID_BYTES)).decode().lower()
    return await context.store.links.put(link_id, body.view, body.state)


@links.get("/v1/links", name="find")
async def find_links(query: Annotated[NamespacePageQuery, Query()], context: ContextDep) -> resources.LinkPage:
    """Lists the links of the namespace without their states, newest first; in `shared` those of the key, for an admin all."""
    limit = page_size(query, context.settings.max_page)
    page, next_cursor = await context.store.links.find(_owner_of(context), limit, query.cursor)
    return resources.LinkPage(data=page, next_cursor=next_cursor)


@links.get("/v1/links/{link_id}", name="read")
async def read_link(link_id: str, context: ContextDep) -> resources.LinkState:
    """Returns the state of a link, of any namespace. The vectors that it names are those that the caller sees."""
    return await context.store.links.get(link_id)


@links.delete("/v1/links/{link_id}", status_code=204, name="delete")
async def delete_link(link_id: str, context: ContextDep) -> None:
    """Deletes a link of the namespace; in `shared` one of the key, for an admin any."""
    await context.store.links.delete(link_id, _owner_of(context))


def _owner_of(context: Context) -> str | None:
    """Returns whose links the request lists and deletes; None for those of every key of the namespace. The keys of a
    namespace own its links together, so a key that replaces another has those of the former one. `shared` is where keys
    are that have nothing to do with each other: each has its own links there, and an admin all of them."""
    everyone = "admin" in context.key.scopes or context.namespace != SHARED
    return None if everyone else context.key.name
