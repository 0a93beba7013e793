"""Changes of named things in the namespace of the caller. What it sees of `shared` it may not change."""

from app.services.context import Context
from app.services.limits import foreign
from steering.errors import ProfileNotFound, SteeringError, VectorNotFound
from steering.namespaces import SHARED
from steering.schemas.vectors import DeleteQuery, DescribeRequest
from steering.vectors import ConceptVector, check_name


async def describe_vector(context: Context, name: str, body: DescribeRequest) -> ConceptVector:
    """Changes description and tags. Raises VectorNotFound, InsufficientScope for a shared vector."""
    tags = None if body.tags is None else tuple(body.tags)
    try:
        return await context.store.vectors.describe(name, body.description, tags)
    except VectorNotFound as error:
        raise await _vector_refusal(context, name, error) from None


async def delete_vector(context: Context, name: str, query: DeleteQuery) -> None:
    """Deletes all versions, or one. Raises VectorNotFound, VectorInUse, InsufficientScope for a shared vector."""
    if context.namespace == SHARED and not query.force:
        context.state.policy.refuse_if_used(name, query.version)
    try:
        await context.store.vectors.delete(name, query.force, query.version)
    except VectorNotFound as error:
        raise await _vector_refusal(context, name, error) from None


async def delete_profile(context: Context, name: str) -> None:
    """Deletes a profile. Raises ProfileNotFound, InsufficientScope for a shared profile."""
    profiles = context.store.profiles
    try:
        await profiles.delete(check_name(name))
    except ProfileNotFound:
        owner = (await context.profile(name)).namespace
        raise foreign("profile", name, owner, context.namespace) from None


async def _vector_refusal(context: Context, name: str, error: VectorNotFound) -> SteeringError:
    try:
        owner = (await context.store.vectors.versions(name, 1))[0].namespace
    except (VectorNotFound, IndexError):
        return await context.with_suggestion(error, name)
    return error if owner == context.namespace else foreign("vector", name, owner, context.namespace)
