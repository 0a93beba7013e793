"""VectorsByName: looks up some names in one namespace and the others in another."""

from collections.abc import Mapping
from dataclasses import dataclass

from steering.store.base import VectorSource
from steering.vectors import ConceptVector, VectorId


@dataclass(frozen=True, slots=True)
class VectorsByName:
    """A VectorSource. sources: where a name, as it is written (`mood` or `mood@3`), is looked up; all others in `rest`."""

    sources: Mapping[str, VectorSource]
    rest: VectorSource

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """See VectorSource.get."""
        source = self.sources.get(str(VectorId(name, version)), self.rest)
        return await source.get(name, version)
