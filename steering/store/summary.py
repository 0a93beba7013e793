"""VectorSummary: one version of a vector without its directions. Listings return summaries, so that they read no blob."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from steering.quality import QualityCard, Recommended
from steering.vectors import ClassMeans, ConceptVector, recommended_layers


@dataclass(frozen=True, slots=True)
class LayerNumbers(ClassMeans):
    """The numbers of one layer besides its direction: see `steering.vectors.LayerDirection`."""

    scale: Annotated[float, Field(gt=0)]
    positive_mean: float | None = None
    negative_mean: float | None = None
    weight: float | None = None
    bias: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class VectorSummary:
    """Everything of a stored ConceptVector except its directions."""

    namespace: str
    name: str
    version: int
    model: str
    model_fingerprint: str
    d_model: int
    method: str
    layers: Mapping[int, LayerNumbers]
    description: str
    tags: tuple[str, ...]
    sha256: str
    created_at: str
    recommended: Recommended | None = None
    quality: QualityCard | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Returns `name@version`."""
        return f"{self.name}@{self.version}"

    def recommended_layers(self) -> tuple[int, ...]:
        """Returns the recommended layers, else the middle layer the vector has."""
        return recommended_layers(self.recommended, self.layers)


def summary_of(vector: ConceptVector) -> VectorSummary:
    """Returns the summary of a vector that is at hand."""
    return VectorSummary(
        namespace=vector.namespace,
        name=vector.name,
        version=vector.version,
        model=vector.model,
        model_fingerprint=vector.model_fingerprint,
        d_model=vector.d_model,
        method=vector.method,
        layers={
            layer: LayerNumbers(entry.scale, entry.positive_mean, entry.negative_mean, entry.weight, entry.bias)
            for layer, entry in vector.layers.items()
        },
        description=vector.description,
        tags=vector.tags,
        sha256=vector.sha256,
        created_at=vector.created_at,
        recommended=vector.recommended,
        quality=vector.quality,
        provenance=vector.provenance,
    )
