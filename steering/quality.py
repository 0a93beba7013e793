"""Defines QualityCard, the measured evidence a vector carries. Plain data without torch; the statistics are in
`steering.extraction`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

Interval: TypeAlias = tuple[float, float]
Basis: TypeAlias = Literal["measured", "card", "norms"]
COHERENT = 1.5
"""Perplexity under the unsteered model, relative to its own text, up to which a text counts as coherent."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95 % interval; None where a single value cannot have one."""

    mean: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class LayerQuality:
    """What held-out examples say about the direction at one layer. None where there are too few to tell."""

    auroc: float | None = None
    auroc_interval: Interval | None = None
    separation: float | None = None
    pair_agreement: float | None = None
    random_auroc: float | None = None


@dataclass(frozen=True, slots=True)
class DosePoint:
    """One strength of a dose-response: the shift of the concept's score and what it cost. Intervals are 95 %.

    perplexity_interval: of perplexity_ratio, over prompts. chance: how far one random direction in twenty moves the score
    at the same dose (upper end of its own uncertainty); None without random directions.
    """

    strength: float
    concept_score: float
    concept_interval: Interval
    perplexity_ratio: float
    repetition: float
    kl_neutral: float
    relative_dose: float
    random_score: float | None = None
    perplexity_interval: Interval | None = None
    chance: float | None = None


@dataclass(frozen=True, slots=True)
class Recommended:
    """Layers to steer at, and strengths in the vector's own natural scales.

    strength, negative: measured ranges above and below 0, None where nothing was measured or nothing held.
    strengths_to_try: where to start without a measurement, from the relative dose; None for a vector at chance, and once a
    measurement exists. basis: "measured" by a dose-response, "card" (the card's best layer, strengths from typical
    norms), or "norms" (no card: the vector's scale against the model's typical norms).
    """

    layers: tuple[int, ...]
    strength: Interval | None = None
    negative: Interval | None = None
    strengths_to_try: Interval | None = None
    basis: Basis = "norms"


@dataclass(frozen=True, slots=True)
class QualityCard:
    """Measured when the vector was made, by cross-validation over topics, and stored with it.

    pairs: all of them. holdout: how many each fold held out. folds: how many folds; 0 where nothing was held out.
    auroc: of the whole procedure, the layer chosen inside each training part; its interval covers topics and splits.
    layers: the same by layer, without the choice.
    """

    pairs: int
    holdout: int
    layers: Mapping[int, LayerQuality]
    dose_response: tuple[DosePoint, ...] | None = None
    anti_steered: float | None = None
    warnings: tuple[str, ...] = ()
    auroc: float | None = None
    auroc_interval: Interval | None = None
    folds: int = 0

    @property
    def at_chance(self) -> bool:
        """Whether the held-out examples do not show that the vector reads better than chance."""
        return self.auroc_interval is not None and self.auroc_interval[0] <= 0.5

    def to_dict(self) -> dict[str, Any]:
        """Returns the card ready for JSON: layer indices become strings."""
        card = asdict(self)
        card["layers"] = {str(layer): asdict(quality) for layer, quality in self.layers.items()}
        return card
