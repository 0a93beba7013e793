"""Plans for a vector at hand: one strength at chosen layers, and random directions of exactly the same dose."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from steering.errors import VectorNotFound
from steering.model.info import ModelInfo
from steering.plan.dose import DoseGuard
from steering.plan.resolve import resolve
from steering.plan.types import SteeringPlan
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
    """The vector turned at random as a whole, scales kept: the same strength adds the same length at every layer, and
    its layers agree with each other as much as the vector's do, so that what they add builds up alike.

    V (d_model, layer) = Q R; the random one is Q' R with Q' (d_model, k) a random orthonormal basis.
    """
    numbers = torch.Generator().manual_seed(seed % 2**63)
    layers = sorted(vector.layers)
    directions = torch.stack([vector.layers[layer].direction for layer in layers], dim=1).double()
    mixing = torch.linalg.qr(directions)[1]
    noise = torch.randn(vector.d_model, len(mixing), generator=numbers, dtype=torch.float64)
    turned = (torch.linalg.qr(noise)[0] @ mixing).float()
    return replace(
        vector,
        layers={
            layer: LayerDirection(turned[:, i] / turned[:, i].norm(), vector.layers[layer].scale)
            for i, layer in enumerate(layers)
        },
        method="random",
        sha256="",
        quality=None,
        recommended=None,
    )
