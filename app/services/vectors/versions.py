"""Lists the versions of a vector."""

from app.services.context import Context
from app.services.limits import check_limit
from app.services.resources import vector_answer
from steering.errors import VectorNotFound
from steering.schemas.vectors import VectorVersionAnswer, VectorVersionsAnswer, VersionsQuery
from steering.store.summary import VectorSummary
from steering.vectors import check_name


async def list_versions(context: Context, name: str, query: VersionsQuery) -> VectorVersionsAnswer:
    """Returns a page of versions, newest first. Raises VectorNotFound."""
    check_limit(query.limit, context.settings.max_page, "entries per page", "limit")
    try:
        found = await context.store.vectors.versions(check_name(name), query.limit, query.before)
    except VectorNotFound as error:
        raise await context.with_suggestion(error, name) from None
    more = len(found) == query.limit and found[-1].version > 1
    return VectorVersionsAnswer(data=list(map(_version, found)), next_before=found[-1].version if more else None)


def _version(vector: VectorSummary) -> VectorVersionAnswer:
    described = vector_answer(vector)
    layers = vector.recommended_layers()
    card = None if described.quality is None else described.quality.layers.get(str(layers[len(layers) // 2]))
    return VectorVersionAnswer(
        namespace=described.namespace,
        id=described.id,
        version=described.version,
        created_at=described.created_at,
        method=described.method,
        layers=described.layers,
        sha256=described.sha256,
        recommended=described.recommended,
        auroc=None if card is None else card.auroc,
    )
