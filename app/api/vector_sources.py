"""Where names of vectors are looked up besides the store of one namespace: in memory, or each in a source of its own."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from steering.errors import VectorNotFound
from steering.model.info import ModelInfo
from steering.plan.layers import check_model
from steering.vectors import ConceptVector, VectorId, VectorSource


class HeldVectors:
    """A VectorSource of vectors by id (`name@version`). Others are looked up in `store`, if there is one.

    The vectors are in memory, so that what an operator set does not depend on the database afterwards.
    """

    def __init__(self, held: Mapping[str, ConceptVector], store: VectorSource | None = None) -> None:
        self._held, self._store = held, store

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """See VectorSource.get."""
        found = None if version is None else self._held.get(f"{name}@{version}")
        if found is not None:
            return found
        if self._store is None:
            raise VectorNotFound(f"there is no vector {name!r}", param="vector")
        return await self._store.get(name, version)


@dataclass(frozen=True, slots=True)
class VectorsByName:
    """A VectorSource that looks up some names in sources of their own, and all others in `rest`.

    sources: the source of each name as it is written (`mood` or `mood@3`).
    """

    sources: Mapping[str, VectorSource]
    rest: VectorSource

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """See VectorSource.get."""
        source = self.sources.get(str(VectorId(name, version)), self.rest)
        return await source.get(name, version)


async def find_vectors(names: Iterable[str], store: VectorSource, info: ModelInfo) -> dict[str, ConceptVector]:
    """Returns vectors of the loaded model by the names as written. Raises VectorNotFound, VectorModelMismatch."""
    found = {}
    for name in dict.fromkeys(names):
        key = VectorId.parse(name)
        found[name] = await store.get(key.name, key.version)
        check_model(found[name], info)
    return found


def by_id(found: Mapping[str, ConceptVector]) -> dict[str, ConceptVector]:
    """Returns the same vectors by id."""
    return {vector.id: vector for vector in found.values()}
