"""VectorSummary: one version of a vector without its directions. Listings return summaries, so that they read no blob."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from steering.quality import QualityCard, Recommended
from steering.vectors import ClassMeans, recommended_layers


@dataclass(frozen=True, slots=True)
class LayerNumbers(ClassMeans):
    """The numbers of one layer besides its direction: see `steering.vectors.LayerDirection`."""

    scale: Annotated[float, Field(gt=0)]
    positive_mean: float | None = None
    negative_mean: float | None = None
    weight: float | None = None
    bias: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class VectorVersion:
    """What names and describes one version of a vector."""

    namespace: str
    name: str
    version: int
    description: str
    tags: tuple[str, ...]
    created_at: str
    sha256: str

    @property
    def id(self) -> str:
        """Returns `name@version`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True, eq=False)
class VectorSummary(VectorVersion):
    """Everything of a stored ConceptVector except its directions."""

    model: str
    model_fingerprint: str
    d_model: int
    method: str
    layers: Mapping[int, LayerNumbers]
    recommended: Recommended | None = None
    quality: QualityCard | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def recommended_layers(self) -> tuple[int, ...]:
        """Returns the recommended layers, else the middle layer the vector has."""
        return recommended_layers(self.recommended, self.layers)
