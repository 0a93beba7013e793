"""Defines QualityCard, the measured evidence that a vector carries, as it is stored and as it is sent. No torch."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from steering.spec import Activation, Interval, Measured

Basis: TypeAlias = Literal["measured", "card", "norms"]
COHERENT = 1.5
"""Perplexity under the unsteered model, relative to its own text, up to which a text counts as coherent."""
DISTILLED = "distil"
"""The method of distilled vectors."""


def own_position(method: str, provenance: Mapping[str, Any]) -> Any:
    """Returns the position at which a vector reads texts: that of its provenance, `last` without one. Vectors that were distilled
    before the provenance said it are made of answers, too: `response_mean`."""
    return provenance.get("position", "response_mean" if method == DISTILLED else "last")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval; null where a single value cannot have one."""

    mean: Measured
    interval: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MapForm:
    """What is known of a map without its numbers. rank: how many pairs of directions it has. activation: phi."""

    rank: int
    activation: Activation = "linear"


@dataclass(frozen=True, slots=True)
class LayerQuality:
    """Measurements of one layer on held-out examples; null where there are too few to tell.
    explained: of a distilled instruction, the share of its squared change that the maps up to this layer make as they were fitted."""

    auroc: Measured | None = None
    auroc_interval: Interval | None = None
    separation: Measured | None = None
    pair_agreement: Measured | None = None
    random_auroc: Measured | None = None
    explained: Measured | None = None


@dataclass(frozen=True, slots=True)
class DosePoint:
    """One strength of a dose-response: the shift of the concept's score and what it cost, with 95 % intervals.

    concept_interval: of concept_score over prompts; null for one prompt. perplexity_interval: of perplexity_ratio over prompts.
    chance: how far one random direction in twenty moves the score at the same dose, estimated from those of all strengths, with
    the uncertainty of their number; null where none was drawn, and where all of them made activations non-finite.
    controls: how many random directions were drawn at the strength.
    kl_neutral: null where no answer to neutral prompts had a token."""

    strength: Measured
    concept_score: Measured
    concept_interval: Interval | None
    perplexity_ratio: Measured
    repetition: Measured
    kl_neutral: Measured | None
    relative_dose: Measured
    random_score: Measured | None = None
    perplexity_interval: Interval | None = None
    chance: Measured | None = None
    controls: int = 0

    @property
    def threshold(self) -> float | None:
        """What the shift is compared with: chance, or 0 without random directions. None where all of them made activations
        non-finite, so that chance is not known."""
        return 0.0 if self.chance is None and not self.controls else self.chance

    @property
    def moves_on_average(self) -> bool | None:
        """Whether the mean shift along the sign of the strength exceeds chance and mean perplexity stays coherent. None where
        chance is not known."""
        along, threshold = self.concept_score if self.strength > 0.0 else -self.concept_score, self.threshold
        if threshold is None:
            return None
        return self.strength != 0.0 and along > threshold and self.perplexity_ratio <= COHERENT

    @property
    def margin(self) -> float | None:
        """How far the lower end of the interval of the shift along the sign of the strength exceeds chance, where it does in
        coherent text; None where it does not, where chance is not known, and where the shift or perplexity has no interval."""
        if self.concept_interval is None or self.threshold is None or not self.strength:
            return None
        low, high = self.concept_interval
        return margin_of((low if self.strength > 0.0 else -high) - self.threshold, self.perplexity_interval)


def margin_of(low: float, perplexity: Interval | None) -> float | None:
    """Returns the margin of a strength that holds: the concept moves beyond chance in coherent text, each with the whole of
    its 95 % interval. low: lower end of the interval of the shift less chance. perplexity: the interval of its ratio, None
    where there is none. None where the strength does not hold."""
    return low if low > 0.0 and perplexity is not None and perplexity[1] <= COHERENT else None


def verdict_without_proof(on_average: Iterable[bool | None]) -> Literal["not shown to steer", "does not steer"]:
    """Returns what to say of strengths none of which holds with its intervals. on_average: whether each does on average; None
    where that is not known."""
    return "does not steer" if all(one is False for one in on_average) else "not shown to steer"


@dataclass(frozen=True, slots=True)
class Recommended:
    """Layers to steer at, and strengths in the vector's own natural scales.
    strength, negative: ranges above and below 0 that a dose-response measured; null before it, and where none held.
    strengths_to_try: where to start before a measurement, from the relative dose; null for a vector at chance.
    margin: by how much the closest strength of the ranges exceeds chance, with the lower end of its interval; null where
    that was not measured.
    basis: `measured` by a dose-response, `card` (its best layer), or `norms` (the vector's scale and the typical norms)."""

    layers: tuple[int, ...]
    strength: Interval | None = None
    negative: Interval | None = None
    strengths_to_try: Interval | None = None
    basis: Basis = "norms"
    margin: Measured | None = None


@dataclass(frozen=True, slots=True)
class QualityCard:
    """The evidence that is stored with a vector, measured by cross-validation over topics when the vector was made.
    pairs: how many there are. holdout: how many each fold held out. folds: how many; 0 where nothing was held out.
    auroc: of the whole procedure, the layer chosen inside each training part; its interval covers topics and splits.
    layers: the same by layer, without the choice. max_auroc: as auroc, at the same layers, where the score of a held-out text
    is the largest over its tokens without the first; null where nobody asked for it."""

    pairs: int
    holdout: int
    layers: Mapping[int, LayerQuality]
    dose_response: tuple[DosePoint, ...] | None = None
    anti_steered: Measured | None = None
    warnings: tuple[str, ...] = ()
    auroc: Measured | None = None
    auroc_interval: Interval | None = None
    folds: int = 0
    max_auroc: Measured | None = None
    max_auroc_interval: Interval | None = None

    @property
    def at_chance(self) -> bool:
        """Whether the held-out examples do not show that the vector reads better than chance: by the lower end of the interval,
        or, with too few topics for an interval, by the AUROC itself."""
        low = self.auroc if self.auroc_interval is None else self.auroc_interval[0]
        return low is not None and low <= 0.5

    def to_dict(self) -> dict[str, Any]:
        """Returns the card ready for JSON: layer indices become strings. `explained` and `controls` are left out where they say
        nothing, so that cards without them have the bytes, and vectors the digest, that they had before these fields."""
        card = asdict(self)
        card["layers"] = {str(layer): _without(asdict(one), explained=None) for layer, one in self.layers.items()}
        if self.dose_response is not None:
            card["dose_response"] = [_without(asdict(point), controls=0) for point in self.dose_response]
        return card


def _without(fields: dict[str, Any], **empty: object) -> dict[str, Any]:
    """Returns the fields without those that have their empty value."""
    return {name: value for name, value in fields.items() if name not in empty or value != empty[name]}
