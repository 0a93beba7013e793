"""Random unit directions at every layer, the same for every contender that steers."""

from collections.abc import Mapping

import torch

from benchmarks.workload import MAP_LAYERS, MAP_RANK, MAPS, NAMES
from steering.errors import VectorNotFound
from steering.maps import LowRankMap
from steering.model.info import ModelInfo
from steering.vectors import ConceptVector
from steering.workflows.extract import registered

SCALE = 3.0
"""Natural scale of every layer: a strength of 0.3 adds about 1 to residuals whose norm is 20 and more."""


class Vectors:
    """Provides the vectors of the workload for one model."""

    def __init__(self, info: ModelInfo) -> None:
        self._vectors = {name: _vector(info, name) for name in NAMES}
        if info.layer_count > max(MAP_LAYERS):
            self._vectors |= {name: _mapped(info, name) for name in MAPS}

    async def get(self, name: str, version: int | None = None) -> ConceptVector:  # noqa: ARG002 - there is one version
        if name not in self._vectors:
            raise VectorNotFound(f"no vector {name!r}; the workload has {', '.join(NAMES)}", param="vector")
        return self._vectors[name]


def directions(name: str, layer_count: int, d_model: int) -> dict[str, list[float]]:
    """By layer, as a caller registers them."""
    generator = torch.Generator().manual_seed(NAMES.index(name))
    found = {}
    for layer in range(layer_count):
        direction = torch.randn(d_model, generator=generator)
        found[str(layer)] = (direction / direction.norm()).tolist()
    return found


def scales(layer_count: int) -> Mapping[str, float]:
    """Natural scale by layer."""
    return {str(layer): SCALE for layer in range(layer_count)}


def _vector(info: ModelInfo, name: str) -> ConceptVector:
    return registered(info, name, directions(name, info.layer_count, info.d_model), scales(info.layer_count))


def _mapped(info: ModelInfo, name: str) -> ConceptVector:
    generator = torch.Generator().manual_seed(MAPS.index(name))

    def rows() -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(MAP_RANK, info.d_model, generator=generator), dim=1)

    maps = {str(layer): LowRankMap.of(rows(), rows(), activation="relu") for layer in MAP_LAYERS}
    return registered(info, name, {}, maps=maps)
