"""Lists the vectors of the library that belong to the loaded model, for routes that read texts against all of them."""

from app.services.context import Context
from app.services.vectors.similar import every_vector
from steering.vectors import ConceptVector, VectorSummary

MAX_VECTORS = 256
"""Vectors of the library that one request reads; each is a row of a matrix that every token is multiplied by."""
DIRECTION_BYTES = 4


async def library_vectors(context: Context) -> tuple[list[ConceptVector], list[str]]:
    """Returns (the newest version of each name by name, at most MAX_VECTORS; a warning where there are more)."""
    info, warnings = context.engine.info, []
    found: list[VectorSummary] = []
    async for one in every_vector(context.store):
        if one.model_fingerprint != info.fingerprint or one.d_model != info.d_model:
            continue
        if len(found) == MAX_VECTORS:
            warnings = [f"the library has more than {MAX_VECTORS} vectors; only the first by name are read"]
            break
        found.append(one)
    context.admission.reserve(sum(len(one.layers) * one.d_model for one in found) * DIRECTION_BYTES)
    return [await context.store.vectors.get(one.name, one.version) for one in found], warnings
