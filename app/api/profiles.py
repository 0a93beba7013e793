"""/v1/profiles and /v1/steering: named strengths, and the default steering, checked against limits and the loaded model."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from app.api.context import Context, ContextDep
from app.api.default_steering import DefaultSteering, not_applied, pin
from app.api.limits import check_stored
from app.core.admission import check_limit
from app.core.answers import damage_warnings, json_in_thread
from app.core.errors import InsufficientScope
from app.core.key import foreign
from app.core.requests import ApiRoute
from steering.errors import ProfileNotFound, StoreCorrupt
from steering.namespaces import visible_from
from steering.schemas.base import NamespacePageQuery
from steering.schemas.resources import (
    ProfileAnswer,
    ProfileList,
    ProfileRequest,
)
from steering.schemas.steering import DefaultSteering as DefaultSteeringRequest
from steering.schemas.steering import DefaultSteeringAnswer
from steering.spec import InterventionSpec, SteeringSpec
from steering.vectors import check_name

router = APIRouter(route_class=ApiRoute, tags=["profiles"])


@router.put("/v1/profiles/{name}", response_model_exclude_unset=True)
async def put(name: str, body: ProfileRequest, context: ContextDep) -> ProfileAnswer:
    """Stores a profile under a name. Its steering must be valid for the loaded model."""
    check_name(name)
    spec = await _checked(context, body.interventions)
    return await context.store.profiles.put(name, spec, body.description)


@router.get("/v1/profiles", response_model=ProfileList)
async def find(query: Annotated[NamespacePageQuery, Query()], context: ContextDep) -> Response:
    """Lists profiles, by name."""
    check_limit(query.limit, context.settings.max_page, "entries per page", "limit")
    page = await context.store.profiles.find(query.limit, query.cursor)

    def build() -> ProfileList:
        return ProfileList(
            data=list(page.profiles), next_cursor=page.next_cursor, warnings=damage_warnings(page.damaged)
        )

    return await json_in_thread(build, exclude_unset=True)


@router.get("/v1/profiles/{name}", response_model_exclude_unset=True)
async def read(name: str, context: ContextDep) -> ProfileAnswer:
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
    spec = await pin(await _checked(context, body.interventions), context.store)
    await context.state[DefaultSteering].put(spec, context.store, context.engine)
    return _default_answer(context, context.namespace, spec)


@router.get("/v1/steering", response_model_exclude_unset=True)
async def read_default(context: ContextDep) -> DefaultSteeringAnswer:
    """Returns the default steering; null when none is set."""
    for namespace in visible_from(context.namespace):
        try:
            spec = await context.state.store.in_namespace(namespace).profiles.default()
        except StoreCorrupt as error:
            return DefaultSteeringAnswer(namespace=namespace, interventions=None, warnings=(not_applied(error),))
        if spec is not None:
            return _default_answer(context, namespace, spec)
    return DefaultSteeringAnswer(namespace=context.namespace, interventions=None)


@router.delete("/v1/steering", status_code=204)
async def delete_default(context: ContextDep) -> None:
    """Clears the default steering."""
    await context.state[DefaultSteering].put(None, context.store, context.engine)


async def _checked(context: Context, interventions: Sequence[InterventionSpec]) -> SteeringSpec:
    """Returns steering that may be stored. Raises InsufficientScope for a key that may not list interventions: it could name what
    it stores here."""
    if context.key.limits.own_steering != "any":
        raise InsufficientScope("this key may not store interventions of its own", param="interventions")
    check_stored(interventions)
    await context.resolve(interventions)
    return SteeringSpec(interventions=tuple(interventions))


def _default_answer(context: Context, namespace: str, spec: SteeringSpec) -> DefaultSteeringAnswer:
    warnings = context.state[DefaultSteering].warnings_of(namespace, spec)
    return DefaultSteeringAnswer(namespace=namespace, interventions=spec.interventions, warnings=warnings)
