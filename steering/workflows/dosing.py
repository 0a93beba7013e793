"""Plans for a vector at hand: one strength at chosen layers, and random directions of exactly the same dose."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from steering.errors import VectorNotFound
from steering.model.info import ModelInfo
from steering.plan import SteeringPlan
from steering.resolve import DoseGuard, resolve
from steering.spec import InterventionSpec, SteeringSpec
from steering.vectors import ConceptVector, LayerDirection

UNGUARDED = DoseGuard(action="off")
"""A sweep goes where text breaks on purpose."""


@dataclass(frozen=True, slots=True, eq=False)
class GivenVectors:
    """A source of vectors that need not be stored."""

    vectors: tuple[ConceptVector, ...]

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """The one of that name and, where asked, version. Raises VectorNotFound."""
        for vector in self.vectors:
            if vector.name == name and version in (None, vector.version):
                return vector
        raise VectorNotFound(f"no vector {name!r} among those given", param="vector")


async def plan_at(info: ModelInfo, vector: ConceptVector, strength: float, layers: Sequence[int]) -> SteeringPlan:
    """Adds the vector at `strength` natural scales at each of the layers. Strength 0 is the empty plan."""
    intervention = InterventionSpec(vector=vector.name, strength=float(strength), layers=tuple(layers))
    return await resolve(SteeringSpec(interventions=(intervention,)), GivenVectors((vector,)), info, guard=UNGUARDED)


def random_like(vector: ConceptVector, seed: int) -> ConceptVector:
    """The vector with random directions in the place of its own, scales kept: the same strength adds the same length."""
    numbers = torch.Generator().manual_seed(seed % 2**63)
    layers = {}
    for layer, entry in sorted(vector.layers.items()):
        direction = torch.randn(vector.d_model, generator=numbers)
        layers[layer] = LayerDirection(direction / direction.norm(), entry.scale)
    return replace(vector, layers=layers, method="random", sha256="", quality=None, recommended=None)
