"""Lists the vectors of the library that belong to the loaded model, for routes that read texts against all of them."""

from app.services.context import Context
from steering.store.base import VectorFilter
from steering.store.summary import VectorSummary
from steering.vectors import ConceptVector

MAX_VECTORS = 256
"""Vectors of the library that one request reads; each is a row of a matrix that every token is multiplied by."""
DIRECTION_BYTES = 4
_PAGE = 64


async def library_vectors(context: Context) -> tuple[list[ConceptVector], list[str]]:
    """Returns (the newest version of each name by name, at most MAX_VECTORS; a warning where there are more)."""
    found, more = await _summaries(context)
    context.admission.reserve(sum(len(one.layers) * one.d_model for one in found) * DIRECTION_BYTES)
    vectors = [await context.store.vectors.get(one.name, one.version) for one in found]
    warning = f"the library has more than {MAX_VECTORS} vectors; only the first by name are read"
    return vectors, [warning] if more else []


async def _summaries(context: Context) -> tuple[list[VectorSummary], bool]:
    """Returns the vectors of the loaded model, at most MAX_VECTORS, and whether there are more."""
    info = context.engine.info
    found: list[VectorSummary] = []
    cursor: str | None = None
    while True:
        page = await context.store.vectors.find(VectorFilter(), _PAGE, cursor)
        found += [
            one for one in page.vectors if one.model_fingerprint == info.fingerprint and one.d_model == info.d_model
        ]
        cursor = page.next_cursor
        if len(found) > MAX_VECTORS or cursor is None:
            return found[:MAX_VECTORS], len(found) > MAX_VECTORS
