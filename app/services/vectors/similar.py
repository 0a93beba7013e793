"""Compares a vector with every other vector of its model."""

from collections.abc import AsyncIterator, Mapping
from statistics import fmean

import structlog
from cachetools import LRUCache

from app.services.resources import damage_warnings
from steering.errors import StoreCorrupt, VectorNotFound
from steering.schemas.base import by_layer
from steering.schemas.vectors import SimilarAnswer, SimilarVector
from steering.store.base import NamespaceStore, VectorFilter, VectorPage
from steering.vectors import ConceptVector, VectorId, VectorSummary, cosine

log = structlog.get_logger(__name__)
_PAGE = 100
MAX_PAIRS = 16_384
"""Pairs whose cosines are kept: a dozen bytes for each layer."""


class Cosines:
    """Cosines of pairs of vectors, kept by their digests: a version never changes, so its directions are read once."""

    def __init__(self) -> None:
        self._found: LRUCache[tuple[str, str], Mapping[int, float]] = LRUCache(MAX_PAIRS)

    async def of(self, vector: ConceptVector, other: VectorSummary, store: NamespaceStore) -> Mapping[int, float]:
        """Returns the cosine at every layer that both have. Raises VectorNotFound, StoreCorrupt."""
        key = (min(vector.sha256, other.sha256), max(vector.sha256, other.sha256))
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = cosine(vector, await store.vectors.get(other.name, other.version))
        return found


async def vector_pages(store: NamespaceStore) -> AsyncIterator[VectorPage]:
    """Yields the newest version of each visible name, by name, a page at a time."""
    cursor: str | None = None
    while True:
        page = await store.vectors.find(VectorFilter(), _PAGE, cursor)
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return


async def similar_vectors(store: NamespaceStore, vector: ConceptVector, cosines: Cosines) -> SimilarAnswer:
    """Compares with every other vector of the model: the most similar first, by absolute mean cosine over shared layers.

    Vectors of other models are not read. A damaged vector is left out and named in a warning; one that is deleted meanwhile is
    left out.
    """
    found, damaged = list[SimilarVector](), list[str]()
    async for page in vector_pages(store):
        damaged += [one for one in page.damaged if VectorId.parse(one).name != vector.name]
        for other in page.vectors:
            if other.name == vector.name or other.model_fingerprint != vector.model_fingerprint:
                continue
            try:
                layers = await cosines.of(vector, other, store)
            except VectorNotFound:
                continue
            except StoreCorrupt as error:
                log.warning("left_out_of_similar", code=error.code, vector=other.id)
                damaged.append(other.id)
                continue
            if layers:
                mean = fmean(layers.values())
                found.append(SimilarVector(namespace=other.namespace, id=other.id, cosine=by_layer(layers), mean=mean))
    found.sort(key=lambda one: (-abs(one.mean), one.id))
    return SimilarAnswer(data=found, warnings=damage_warnings(damaged))
