"""The things that the contract of stores puts into one."""

from dataclasses import replace
from typing import Any

import torch

from steering.spec import SteeringSpec
from steering.store.store import NamespaceStore, Store
from steering.vectors import ConceptVector, LayerDirection


def a_vector(name: str = "warmth", seed: int = 0, **fields: Any) -> ConceptVector:
    """Three layers of random unit directions, and numbers with many digits."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for layer in (2, 10, 11):
        values = torch.randn(16, generator=generator)
        layers[layer] = LayerDirection(
            values / values.norm(), scale=0.1 + seed + layer, positive_mean=1 / 3, negative_mean=-1e-17, weight=None
        )
    return replace(ConceptVector(name, "tiny", "sha:1", 16, "mean_difference", layers), **fields)


def steering(*interventions: dict[str, object]) -> SteeringSpec:
    return SteeringSpec.model_validate({"interventions": list(interventions)})


async def put_vectors(place: NamespaceStore, *of: str) -> None:
    """Stores a version of each name, so that steerings may name it."""
    for name in of:
        await place.vectors.put(a_vector(name))


async def names(store: Store, **wanted: Any) -> list[str]:
    return [vector.name for vector in (await store.shared.vectors.find(**wanted)).items]
