"""Request and response models of POST /v1/vectors/extract, /v1/vectors/distil and /v1/vectors/transfer."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from steering.cards import Estimate
from steering.schemas.base import Answer, Request
from steering.schemas.evaluation import ScoresAnswer
from steering.schemas.messages import MAX_TEXTS, Phases, PlainText, Position, Seed, Text, Texts
from steering.schemas.vectors import LayerList, Name, NamedVector, VectorAnswer
from steering.spec import MAX_RANK, LayerIndex, Measured, Number, Numbers, exactly_one

Topic: TypeAlias = Annotated[str, Field(max_length=256)]
"""Texts of one topic are held out together."""
Topics: TypeAlias = Annotated[tuple[Topic, ...], Field(max_length=MAX_TEXTS, fail_fast=True)]


class Pair(Request):
    """A positive and a negative text that differ in the concept. topic: pairs that are held out together."""

    positive: Text
    negative: Text
    topic: Topic | None = None


class TraitDescription(Request):
    """A trait in words and its opposite; the loaded model writes the contrasting answers itself."""

    trait: Annotated[str, Field(min_length=1, max_length=2000)]
    opposite: Annotated[str, Field(min_length=1, max_length=2000)]


class Training(Request):
    """How method `trained` fits its direction; what is left out is as the library has it.
    kl_coefficient: what a nat of divergence per token of neutral answers counts against the concept; 0: none are used."""

    steps: Annotated[int, Field(strict=True, ge=1, le=2000)] | None = None
    batch: Annotated[int, Field(strict=True, ge=1, le=64)] | None = None
    learning_rate: Annotated[Number, Field(gt=0, le=1)] | None = None
    strengths: tuple[Annotated[Number, Field(gt=0, le=100)], Annotated[Number, Field(gt=0, le=100)]] | None = None
    kl_coefficient: Annotated[Number, Field(ge=0, le=1000)] | None = None

    @model_validator(mode="after")
    def _low_to_high(self) -> "Training":
        if self.strengths is not None and self.strengths[0] > self.strengths[1]:
            raise ValueError("'strengths' go from low to high")
        return self


class ExtractRequest(NamedVector):
    """Exactly one source: `pairs`, `concept` (of `GET /v1/concepts`), `positive` with `negative`, or `describe`.
    positive_topics, negative_topics: of each text of the lists, as topics of pairs; null: texts that share rare words are one.
    position: which activation of a text is read; null for `response_mean` where all texts are conversations, `last` where
    none is, else `mean`. phase: the mean over the tokens in these phases is read instead; each text is then a conversation that
    ends with an answer. card_position: `max` also scores each held-out text by its largest token, see QualityCard."""

    pairs: Annotated[tuple[Pair, ...], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)] | None = None
    concept: Annotated[str, Field(max_length=64)] | None = None
    positive: Texts | None = None
    negative: Texts | None = None
    positive_topics: Topics | None = None
    negative_topics: Topics | None = None
    describe: TraitDescription | None = None
    method: Annotated[str, Field(max_length=64)] = "mean_difference"
    layers: Literal["all"] | LayerList = "all"
    position: Position | None = None
    phase: Phases | None = None
    card_position: Literal["max"] | None = None
    holdout: Annotated[Number, Field(ge=0, lt=1)] = 0.3
    seed: Seed = 0
    training: Training | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "ExtractRequest":
        if (self.positive is None) != (self.negative is None):
            raise ValueError("'positive' and 'negative' come together")
        for name in ("positive", "negative"):
            texts, topics = getattr(self, name), getattr(self, f"{name}_topics")
            if (topics is None) != (self.positive_topics is None) or (
                topics is not None and len(topics) != len(texts or ())
            ):
                raise ValueError(
                    f"'{name}_topics' names one topic for each text of '{name}' ({len(texts or ())}), got {len(topics or ())}; "
                    "both lists have topics, or none"
                )
        if self.phase is not None and (self.position or self.card_position or self.method == "trained"):
            raise ValueError(
                "'phase' reads the mean over its tokens: it takes no 'position', no 'card_position' and no method 'trained'"
            )
        given = [name for name in ("pairs", "concept", "positive", "describe") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of 'pairs', 'concept', 'positive' with 'negative', and 'describe'")
        return self


class DistilRequest(NamedVector):
    """An instruction in words, as a system message would have it, or a concept in words, and how its effect is fitted.
    prompts: what the model answers under it; null: 32 bundled neutral prompts. layers: null: six, from a third of the model on.
    rank: directions of the map at each layer. max_tokens: of each answer. holdout: share of the prompts that measure the maps."""

    instruction: Annotated[str, Field(min_length=1, max_length=4000)] | None = None
    concept: Annotated[str, Field(max_length=64)] | None = None
    prompts: Annotated[tuple[PlainText, ...], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)] | None = None
    layers: LayerList | None = None
    rank: Annotated[int, Field(strict=True, ge=1, le=MAX_RANK)] = MAX_RANK
    max_tokens: Annotated[int, Field(strict=True, ge=4, le=512)] = 64
    holdout: Annotated[Number, Field(ge=0, lt=1)] = 0.25
    seed: Seed = 0

    _one_source = exactly_one("instruction", "concept")


class EffectRequest(Request):
    """Measures how far the vector steers: what the loaded model writes at one relative dose, read by the unsteered model.
    prompts: how many neutral prompts are answered. native: a vector to compare with; absent, the pairs' direction."""

    prompts: Annotated[int, Field(strict=True, ge=2, le=64)] = 12
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=256)] = 32
    relative_dose: Annotated[Number, Field(gt=0, le=1)] = 0.15
    native: Name | None = None


class TransferRequest(NamedVector):
    """Carries a direction of the operator's second model to the loaded one.
    concept, pairs: give the direction, unless `direction` has its numbers at `from_layer`, and measure the result.
    anchors: texts that both models read to fit the map; absent, texts of other starter concepts and neutral ones.
    from_layer, to_layer: absent, those that read the pairs best. effect: absent, how far it steers is not measured."""

    concept: Annotated[str, Field(max_length=64)] | None = None
    pairs: Annotated[tuple[Pair, ...], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)] | None = None
    anchors: Texts | None = None
    direction: Numbers | None = None
    from_layer: LayerIndex | None = None
    to_layer: LayerIndex | None = None
    position: Position | None = None
    holdout: Annotated[Number, Field(gt=0, lt=1)] = 0.3
    seed: Seed = 0
    effect: EffectRequest | None = None

    _one_source = exactly_one("concept", "pairs")


class EffectAnswer(Answer):
    """How far answers move with each vector at one relative dose, in natural scales of the pairs' direction.
    native: the vector that was compared; null, the pairs' direction in the loaded model.
    shift: of `native` and `transferred`, means over prompts; null where numbers left their range.
    chance: what one random direction in twenty of the same dose reaches at the layer of the transfer; null if unknown.
    scores: of every answer; their `vector` is `native` or `transferred`."""

    relative_dose: Measured
    prompts: int
    max_tokens: int
    native: str | None
    shift: dict[str, Estimate | None]
    chance: Measured | None = None
    scores: tuple[ScoresAnswer, ...] = ()


class TransferAnswer(Answer):
    """The vector in the loaded model, and its loss. cosine: with the native direction.
    auroc: on held-out pairs, of `source`, `native`, `transferred` and `random` directions; null where too few are held out.
    explained: share of the variance of held-out anchors that the map explains."""

    vector: VectorAnswer
    from_model: str
    from_layer: int
    to_layer: int
    anchors: int
    explained: Measured
    cosine: Measured
    auroc: dict[str, Estimate | None]
    effect: EffectAnswer | None = None
    warnings: list[str]
