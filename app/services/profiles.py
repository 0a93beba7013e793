"""Stores profiles and the default steering, after checking them against limits and the loaded model."""

from collections.abc import Sequence

from starlette.responses import Response

from app.default_steering import not_applied, pin
from app.errors import InsufficientScope
from app.http.answers import json_in_thread
from app.services.context import Context
from app.services.limits import check_limit, check_stored, foreign
from app.services.resources import damage_warnings, profile_answer
from steering.errors import ProfileNotFound, StoreCorrupt
from steering.namespaces import visible_from
from steering.schemas.base import NamespacePageQuery
from steering.schemas.resources import ProfileList, ProfileRequest
from steering.schemas.steering import DefaultSteeringAnswer
from steering.spec import InterventionSpec, SteeringSpec
from steering.store.base import Profile
from steering.vectors import check_name


async def _checked(context: Context, interventions: Sequence[InterventionSpec]) -> SteeringSpec:
    """Returns steering that may be stored. Raises InsufficientScope for a key that may not list interventions: it could name what
    it stores here."""
    if context.key.limits.own_steering != "any":
        raise InsufficientScope("this key may not store interventions of its own", param="interventions")
    check_stored(interventions)
    await context.resolve(interventions)
    return SteeringSpec(interventions=tuple(interventions))


async def put(context: Context, name: str, body: ProfileRequest) -> Profile:
    """Stores a profile under a name."""
    check_name(name)
    spec = await _checked(context, body.interventions)
    return await context.store.profiles.put(Profile(name, spec, body.description))


async def delete(context: Context, name: str) -> None:
    """Deletes a profile. Raises ProfileNotFound, InsufficientScope for a shared profile."""
    try:
        await context.store.profiles.delete(check_name(name))
    except ProfileNotFound:
        owner = (await context.profile(name)).namespace
        raise foreign("profile", name, owner, context.namespace) from None


async def find(context: Context, query: NamespacePageQuery) -> Response:
    """Lists profiles, by name."""
    check_limit(query.limit, context.settings.max_page, "entries per page", "limit")
    page = await context.store.profiles.find(query.limit, query.cursor)

    def build() -> ProfileList:
        found = list(map(profile_answer, page.profiles))
        return ProfileList(data=found, next_cursor=page.next_cursor, warnings=damage_warnings(page.damaged))

    return await json_in_thread(build, exclude_unset=True)


async def put_default(context: Context, interventions: Sequence[InterventionSpec]) -> DefaultSteeringAnswer:
    """Sets the default steering, with its vectors pinned to their versions."""
    spec = await pin(await _checked(context, interventions), context.store)
    await context.state.default_steering.put(spec, context.store, context.engine)
    return _default_answer(context, context.namespace, spec)


async def read_default(context: Context) -> DefaultSteeringAnswer:
    """Returns the default steering of the namespace, else that of `shared`."""
    for namespace in visible_from(context.namespace):
        try:
            spec = await context.state.store.in_namespace(namespace).profiles.default()
        except StoreCorrupt as error:
            return DefaultSteeringAnswer(namespace=namespace, interventions=None, warnings=(not_applied(error),))
        if spec is not None:
            return _default_answer(context, namespace, spec)
    return DefaultSteeringAnswer(namespace=context.namespace, interventions=None)


def _default_answer(context: Context, namespace: str, spec: SteeringSpec) -> DefaultSteeringAnswer:
    warnings = context.state.default_steering.warnings_of(namespace, spec)
    return DefaultSteeringAnswer(namespace=namespace, interventions=spec.interventions, warnings=warnings)


async def clear_default(context: Context) -> None:
    """Clears the default steering."""
    await context.state.default_steering.put(None, context.store, context.engine)
