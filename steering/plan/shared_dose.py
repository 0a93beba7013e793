"""Divides the relative dose of one add over its layers."""

from collections.abc import Sequence

from steering.errors import InvalidRequest
from steering.operations.base import unit_size
from steering.spec import InterventionSpec
from steering.vectors import ConceptVector


def shared_strengths(
    item: InterventionSpec, vector: ConceptVector, layers: Sequence[int], norms: Sequence[float]
) -> dict[int, float]:
    """Returns the strength at each of the layers, in the unit of the item.

    Each layer plans the same relative dose, and together they plan what `item.strength` plans at the recommended layers of
    the vector. norms: the typical |r| of every layer of the model, empty where they were not measured. Raises InvalidRequest without
    them, unless the unit is `relative`.
    """
    if item.unit != "relative" and not norms:
        raise InvalidRequest(
            f"'share_dose' in unit {item.unit!r} needs the typical norms of the model, which were not measured; use unit "
            "'relative'",
            param="share_dose",
        )

    def dose(layer: int) -> float:
        """The planned relative dose of strength 1."""
        return 1.0 if item.unit == "relative" else unit_size(item, vector.at(layer)) / norms[layer]

    share = item.strength * sum(map(dose, vector.recommended_layers())) / len(layers)
    return {layer: share / dose(layer) for layer in layers}
