"""QualityCard: the measured evidence a vector carries. Pure data and torch-free; statistics are in `steering.extraction.quality`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LayerQuality:
    """What held-out examples say about the direction at one layer. None where the held-out part is too small to tell."""

    auroc: float | None = None
    auroc_interval: tuple[float, float] | None = None
    separation: float | None = None
    pair_agreement: float | None = None
    random_auroc: float | None = None


@dataclass(frozen=True, slots=True)
class DosePoint:
    """One strength of a dose-response: the concept's score and what it cost. Intervals are 95 %."""

    strength: float
    concept_score: float
    concept_interval: tuple[float, float]
    perplexity_ratio: float
    repetition: float
    kl_neutral: float
    relative_dose: float
    random_score: float | None = None


@dataclass(frozen=True, slots=True)
class Recommended:
    """Layers to steer at, and the range of strengths to try, in natural scales."""

    layers: tuple[int, ...]
    strength: tuple[float, float]


@dataclass(frozen=True, slots=True)
class QualityCard:
    """Measured on held-out topics when the vector was made, stored with it, shown wherever it is shown."""

    pairs: int
    holdout: int
    layers: Mapping[int, LayerQuality]
    dose_response: tuple[DosePoint, ...] | None = None
    anti_steered: float | None = None
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: layer indices become strings, tuples lists."""
        card = asdict(self)
        card["layers"] = {str(layer): asdict(quality) for layer, quality in self.layers.items()}
        return card

    @classmethod
    def from_dict(cls, card: Mapping[str, Any]) -> "QualityCard":
        """The inverse of `to_dict`, also after a trip through JSON."""

        def interval(value: Any) -> tuple[float, float] | None:
            return None if value is None else (float(value[0]), float(value[1]))

        layers = {
            int(layer): LayerQuality(**{**quality, "auroc_interval": interval(quality.get("auroc_interval"))})
            for layer, quality in card["layers"].items()
        }
        points = card.get("dose_response")
        return cls(
            pairs=card["pairs"],
            holdout=card["holdout"],
            layers=layers,
            dose_response=None
            if points is None
            else tuple(
                DosePoint(**{**point, "concept_interval": tuple(point["concept_interval"])}) for point in points
            ),
            anti_steered=card.get("anti_steered"),
            warnings=tuple(card.get("warnings", ())),
        )
