"""Lists, describes and deletes the versions of a vector. What the caller sees of `shared` it may not change."""

from app.errors import InsufficientScope
from app.services.context import Context
from app.services.limits import check_limit, foreign
from app.services.resources import damage_warnings, vector_answer
from steering.errors import SteeringError, VectorInUse, VectorNotFound
from steering.schemas.vectors import (
    DeleteQuery,
    DescribeRequest,
    VectorVersionAnswer,
    VectorVersionsAnswer,
    VersionsQuery,
)
from steering.vectors import ConceptVector, VectorSummary, check_name


async def list_versions(context: Context, name: str, query: VersionsQuery) -> VectorVersionsAnswer:
    """Returns a page of versions, newest first. Raises VectorNotFound."""
    check_limit(query.limit, context.settings.max_page, "entries per page", "limit")
    try:
        found = await context.store.vectors.versions(check_name(name), query.limit, query.before)
    except VectorNotFound as error:
        raise await context.with_suggestion(error, name) from None
    data, warnings = list(map(_version, found.versions)), damage_warnings(found.damaged)
    return VectorVersionsAnswer(data=data, next_before=found.next_before, warnings=warnings)


def _version(vector: VectorSummary) -> VectorVersionAnswer:
    described = vector_answer(vector)
    layers = vector.recommended_layers()
    card = None if described.quality is None else described.quality.layers.get(str(layers[len(layers) // 2]))
    return VectorVersionAnswer.model_validate({**dict(described), "auroc": None if card is None else card.auroc})


async def describe_vector(context: Context, name: str, body: DescribeRequest) -> ConceptVector:
    """Changes description and tags. Raises VectorNotFound, InsufficientScope for a shared vector."""
    try:
        return await context.store.vectors.describe(name, body.description, body.tags)
    except VectorNotFound as error:
        raise await _vector_refusal(context, name, error) from None


async def delete_vector(context: Context, name: str, query: DeleteQuery) -> None:
    """Deletes all versions, or one. Raises VectorNotFound, VectorInUse, InsufficientScope for a shared vector.

    Without the scope `admin` a delete is not forced where the policy needs the vector: without it the policy could not be
    applied any more, and nothing would be answered.
    """
    admin = "admin" in context.key.scopes
    try:
        await context.store.vectors.delete(name, query.force, query.version, documents_too=admin)
    except VectorInUse:
        if query.force:
            reason = f"the policy uses vector {name!r}; only a key with the scope 'admin' may force this delete"
            raise InsufficientScope(reason, param="force") from None
        raise
    except VectorNotFound as error:
        raise await _vector_refusal(context, name, error) from None


async def _vector_refusal(context: Context, name: str, error: VectorNotFound) -> SteeringError:
    try:
        owner = await context.store.vectors.namespace_of(name)
    except VectorNotFound:
        return await context.with_suggestion(error, name)
    return error if owner == context.namespace else foreign("vector", name, owner, context.namespace)
