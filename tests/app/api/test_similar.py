"""Similarity reads the directions of each pair of versions once, and those of other models never."""

from dataclasses import replace

from app.api.vectors import Cosines, similar_vectors
from steering.errors import StoreCorrupt
from steering.store.base import VectorStore
from steering.store.sql.store import SqlStore
from steering.vectors import ConceptVector
from tests.steering.store.planted import planted


class Counting:
    """Vectors of a store; notes each whose directions are read. `damaged` cannot be read."""

    def __init__(self, vectors: VectorStore) -> None:
        self._vectors = vectors
        self.put, self.find, self.describe = vectors.put, vectors.find, vectors.describe
        self.versions, self.delete = vectors.versions, vectors.delete
        self.names, self.namespace_of = vectors.names, vectors.namespace_of
        self.read: list[str] = []

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """See VectorStore.get."""
        self.read.append(f"{name}@{version}")
        if name == "damaged":
            raise StoreCorrupt("the bytes of vector damaged@1 do not match their SHA-256")
        return await self._vectors.get(name, version)


async def test_each_pair_is_read_once_and_other_models_never(memory: SqlStore) -> None:
    shared = memory.shared
    one = await shared.vectors.put(planted("one", 1))
    await shared.vectors.put(planted("near", 1))
    await shared.vectors.put(planted("far", 2))
    await shared.vectors.put(replace(planted("foreign", 1), model_fingerprint="sha:2"))
    await shared.vectors.put(planted("damaged", 3))
    counting = Counting(shared.vectors)
    store = replace(shared, vectors=counting)
    cosines = Cosines()
    first = await similar_vectors(store, one, cosines)
    assert [(found.id, round(found.mean, 6)) for found in first.data[:1]] == [("near@1", 1.0)]
    assert {found.id for found in first.data} == {"near@1", "far@1"}
    assert sorted(counting.read) == ["damaged@1", "far@1", "near@1"]
    counting.read.clear()
    assert await similar_vectors(store, one, cosines) == first
    assert counting.read == ["damaged@1"]
    await shared.vectors.put(planted("near", 4))
    await similar_vectors(store, one, cosines)
    assert counting.read == ["damaged@1", "damaged@1", "near@2"], "a new version is another pair"
