"""Similarity reads the directions of each pair of versions once, and those of other models never."""

from dataclasses import replace

from app.api.vectors import Cosines, similar_vectors
from steering.errors import StoreCorrupt
from steering.store.store import Store
from steering.store.vectors import Vectors
from steering.vectors import ConceptVector
from tests.steering.store.planted import planted


class Counting(Vectors):
    """Vectors of a store; notes each whose directions are read. `damaged` cannot be read."""

    def __init__(self, vectors: Vectors) -> None:
        super().__init__(vectors.database, vectors.namespace, vectors.writer, vectors.reads)
        self.read: list[str] = []

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """See Vectors.get."""
        self.read.append(f"{name}@{version}")
        if name == "damaged":
            raise StoreCorrupt("the bytes of vector damaged@1 do not match their SHA-256")
        return await super().get(name, version)


async def test_each_pair_is_read_once_and_other_models_never(memory: Store) -> None:
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
