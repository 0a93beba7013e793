"""Request and response models of a deployment report, one kind of POST /v1/evaluations."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from steering.schemas.base import Answer, Measured, Number, Request, Whole, at_most_one
from steering.schemas.comparison import EstimateAnswer
from steering.schemas.messages import Seed, Texts
from steering.schemas.steering import Steering
from steering.schemas.vectors import Name
from steering.spec import InterventionSpec

Share: TypeAlias = Annotated[Number, Field(ge=0, le=1)]


class ThresholdsFields(Request):
    """What the gates demand; what is left out keeps its default.

    anti_steered: largest share of prompts that move against the direction. perplexity: largest ratio to unsteered text. repetition:
    largest increase of repeated runs of four tokens. kl_neutral: nats per token on neutral prompts. accuracy_loss: of the share of
    questions answered rightly. retained: smallest share of the shift that is left under each variation. agreement: smallest
    rank correlation with the independent scorer.
    """

    anti_steered: Share = 0.25
    perplexity: Annotated[Number, Field(ge=1, le=100)] = 1.5
    repetition: Share = 0.1
    kl_neutral: Annotated[Number, Field(ge=0, le=100)] = 0.5
    accuracy_loss: Share = 0.1
    retained: Share = 0.5
    agreement: Annotated[Number, Field(ge=-1, le=1)] = 0.3


class ReportRequest(Request):
    """Judges steering at a fixed operating point by three gates.

    vector: whose concept is to move. steering: the operating point, any operations, conditions or a profile; absent, an add of the
    vector at `strength`, or at its largest recommended one. direction: how the concept is meant to move; absent, taken from the
    first intervention with the vector. prompts, or `concept` for the evaluation prompts of a starter concept; absent, those of
    the concept that the vector was extracted from, or neutral ones. side_effects: starter concepts and vectors along which the
    texts are also read; absent, the library and all starter concepts. seeds: each is judged on its own, against one bound of
    chance. samples: answers to each prompt under each steering, averaged. varied: how many prompts are varied, the first ones.
    """

    kind: Literal["report"]
    vector: Name
    steering: Steering | None = None
    strength: Number | None = None
    direction: Literal["up", "down"] | None = None
    prompts: Texts | None = None
    concept: Annotated[str, Field(max_length=64)] | None = None
    neutral: Texts | None = None
    reader: Name | None = None
    reading_layer: Annotated[Whole, Field(ge=0, le=1000)] | None = None
    scorer: Annotated[str, Field(max_length=64)] = "projection"
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=512)] = 48
    temperature: Annotated[Number, Field(ge=0, le=100)] = 0.7
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=4, fail_fast=True)] = (0, 1)
    samples: Annotated[int, Field(strict=True, ge=1, le=8)] = 1
    varied: Annotated[int, Field(strict=True, ge=1, le=1000)] = 12
    side_effects: Annotated[tuple[Name, ...], Field(max_length=32, fail_fast=True)] | None = None
    thresholds: ThresholdsFields = ThresholdsFields()

    _one_source = at_most_one("prompts", "concept")
    _one_point = at_most_one("steering", "strength")


class CheckAnswer(Answer):
    """One number against its threshold; `above` compares the lower end of the interval."""

    name: str
    value: Measured
    relation: Literal["above", "at_most", "at_least"]
    threshold: Measured
    passed: bool
    interval: tuple[Measured, Measured] | None = None


class GateAnswer(Answer):
    """Passes when all of its checks do."""

    name: Literal["control", "utility", "robustness"]
    passed: bool
    checks: list[CheckAnswer]


class SideEffectAnswer(Answer):
    """How far the answers moved along another vector, in its natural scales."""

    vector: str
    layer: int
    shift: EstimateAnswer


class ReportTextAnswer(Answer):
    """One prompt with its first answer without and with steering. variation: `plain`, or how the prompt was changed. moved: along the
    direction, mean over its answers."""

    variation: str
    prompt: str
    unsteered: str
    steered: str
    moved: Measured


class SeedReportAnswer(Answer):
    """The verdict of one seed. chance: the shift that one random steering of the same dose in twenty reaches, estimated from the random
    directions of all seeds; null where it is not known. broken: activations became non-finite, and nothing was judged."""

    seed: int
    passed: bool
    broken: bool
    moved: EstimateAnswer
    chance: Measured | None
    gates: list[GateAnswer]
    side_effects: list[SideEffectAnswer]
    texts: list[ReportTextAnswer]


class ReportAnswer(Answer):
    """passed: every gate under every seed. seeds_agree: the seeds pass and fail the same gates."""

    kind: Literal["report"] = "report"
    vector: str
    interventions: list[InterventionSpec]
    fingerprint: str
    model: str
    direction: Literal["up", "down"]
    reading_layer: int
    passed: bool
    seeds_agree: bool
    seeds: list[SeedReportAnswer]
    thresholds: ThresholdsFields
    warnings: list[str]
