"""Vectors whose every number follows from a seed, so that another process can say what they must be."""

import torch

from steering.vectors import ConceptVector, LayerDirection


def planted(name: str, seed: int, layers: int = 2, d_model: int = 8) -> ConceptVector:
    """Random unit directions (d_model,) at layers 0, 1, ...; the scale of layer n is seed + n + 0.5."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(layers, d_model, generator=generator)
    values = values / values.norm(dim=1, keepdim=True)
    return ConceptVector(
        name=name,
        model="tiny",
        model_fingerprint="sha:1",
        d_model=d_model,
        method="mean_difference",
        layers={layer: LayerDirection(values[layer], scale=seed + layer + 0.5) for layer in range(layers)},
    )


def same_numbers(one: ConceptVector, other: ConceptVector) -> bool:
    """Every direction bit for bit, every scale."""
    return set(one.layers) == set(other.layers) and all(
        torch.equal(one.layers[layer].direction, other.layers[layer].direction)
        and one.layers[layer].scale == other.layers[layer].scale
        for layer in one.layers
    )
