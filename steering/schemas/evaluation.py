"""Request and response models of POST /v1/evaluations: layer sweeps, dose-responses and deployment reports."""

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from steering.cards import DosePoint, Estimate, Recommended, margin_of
from steering.schemas.base import Answer, Flag, Request, Whole
from steering.schemas.choices import ChoicesAnswer, ChoicesRequest
from steering.schemas.messages import Seed, Texts
from steering.schemas.steering import Steering
from steering.schemas.vectors import Name, VectorAnswer
from steering.spec import InterventionSpec, Layers, Measured, Number, at_most_one

Arm: TypeAlias = Literal["unsteered", "steered", "random", "fewer_pairs"]
Share: TypeAlias = Annotated[Number, Field(ge=0, le=1)]


class ThresholdsFields(Request):
    """What the gates demand; what is left out keeps its default.
    A check passes with the whole of its 95 % interval. anti_steered: largest share of prompts that move against the
    direction. perplexity: largest ratio to unsteered text.
    repetition: largest increase of repeated runs of four tokens. kl_neutral: nats per token on neutral prompts.
    accuracy_loss: of the share of right answers. retained: smallest share of the shift left under each variation.
    agreement: smallest rank correlation with the independent scorer."""

    anti_steered: Share = 0.25
    perplexity: Annotated[Number, Field(ge=1, le=100)] = 1.5
    repetition: Share = 0.1
    kl_neutral: Annotated[Number, Field(ge=0, le=100)] = 0.5
    accuracy_loss: Share = 0.1
    retained: Share = 0.5
    agreement: Annotated[Number, Field(ge=-1, le=1)] = 0.3


class AnsweredFields(Request):
    """Which prompts are answered, how, and how the answers are read back."""

    vector: Name
    prompts: Texts | None = None
    concept: Annotated[str, Field(max_length=64)] | None = None
    neutral: Texts | None = None
    reader: Name | None = None
    reading_layer: Annotated[Whole, Field(ge=0, le=1000)] | None = None
    scorer: Annotated[str, Field(max_length=64)] = "projection"
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=512)] = 48
    temperature: Annotated[Number, Field(ge=0, le=100)] = 0.7

    _one_source = at_most_one("prompts", "concept")


class ReportRequest(AnsweredFields):
    """Judges steering at a fixed operating point by three gates.
    steering: the operating point; absent, an add of the vector at `strength`, or at its largest recommended one.
    direction: how the concept is meant to move; absent, taken from the first intervention with the vector.
    prompts, concept: absent, the report's own prompts of the concept that the vector was extracted from, or neutral ones.
    side_effects: starter concepts and vectors along which texts are read too; absent, all. seeds: each is judged on its own.
    samples: answers to each prompt under each steering, averaged. varied: how many prompts are varied, the first ones."""

    kind: Literal["report"]
    steering: Steering | None = None
    strength: Number | None = None
    direction: Literal["up", "down"] | None = None
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=4, fail_fast=True)] = (0, 1)
    samples: Annotated[int, Field(strict=True, ge=1, le=8)] = 1
    varied: Annotated[int, Field(strict=True, ge=1, le=1000)] = 12
    side_effects: Annotated[tuple[Name, ...], Field(max_length=32, fail_fast=True)] | None = None
    thresholds: ThresholdsFields = ThresholdsFields()

    _one_point = at_most_one("steering", "strength")


class ScoresAnswer(Answer):
    """Every answer under one steering: a row for each prompt, in their order, with a number for each of its samples.
    Empty where activations became non-finite. arm: what steered; `random` has the number of its `direction`, from 0.
    strength, layer: of a dose-response or layer sweep; vector, operation, split: of a layer sweep, vector of a transfer's effect too.
    variation: of a report.
    scores: as the unsteered model reads the answer. surprises: its mean -log p of a token; null where not measured."""

    arm: Arm
    scores: list[list[Measured]]
    surprises: list[list[Measured | None]]
    direction: int | None = None
    strength: Measured | None = None
    layer: int | None = None
    variation: str | None = None
    vector: str | None = None
    operation: str | None = None
    split: Literal["validation", "test"] | None = None


class CheckAnswer(Answer):
    """One number against its threshold. value: null where nothing was measured. passed: the whole 95 % interval satisfies the
    relation; a number without one does not pass. on_average: the number itself does; a check that passes on average only is not
    shown to pass. margin: how far the closer end of the interval is on the right side of the threshold; negative on the wrong
    side, null without an interval."""

    name: str
    value: Measured | None
    relation: Literal["above", "at_most", "at_least"]
    threshold: Measured
    passed: bool
    on_average: bool | None = None
    margin: Measured | None = None
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
    shift: Estimate


class ReportTextAnswer(Answer):
    """One prompt with its first answer without and with steering.
    variation: `plain`, or how the prompt was changed. moved: along the direction, mean over its answers."""

    variation: str
    prompt: str
    unsteered: str
    steered: str
    moved: Measured


class SeedReportAnswer(Answer):
    """The verdict of one seed. broken: activations became non-finite, and nothing was judged.
    chance: the shift that one random steering of the same dose in twenty reaches, from all seeds; null if unknown.
    scores: of every answer."""

    seed: int
    passed: bool
    broken: bool
    moved: Estimate
    chance: Measured | None
    gates: list[GateAnswer]
    side_effects: list[SideEffectAnswer]
    texts: list[ReportTextAnswer]
    scores: tuple[ScoresAnswer, ...] = ()


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


Strengths: TypeAlias = Annotated[tuple[Number, ...], Field(min_length=1, max_length=1024, fail_fast=True)]


class EvaluationFields(AnsweredFields):
    """What every evaluation takes.
    prompts, concept: a text is continued, messages are answered; absent, the package's neutral prompts.
    reader: the answers are read back by the unsteered model along it; absent, along the vector itself.
    reading_layer: absent, where the reader's card reads best."""

    strengths: Strengths | None = None
    seed: Seed = 0


class LayerSweepRequest(EvaluationFields):
    """One layer at a time, at strengths of one sign: which moves text furthest before it breaks. Every second prompt chooses, the
    others report.
    vectors: others that are compared, such as those of other methods. operations: ways of applying them; `clamp` keeps the score
    beyond the strength, and `apply` adds the map of a vector that has one. unit: `kl` takes strengths as shares, up to 2, of the one at which each vector, layer and operation
    changes the predictions on neutral text by 1 nat at the 95th percentile. neutral: prompts on which KL is measured."""

    kind: Literal["layer_sweep"]
    layers: Layers = "all"
    vectors: Annotated[tuple[Name, ...], Field(max_length=16, fail_fast=True)] = ()
    operations: Annotated[tuple[Literal["add", "clamp", "apply"], ...], Field(min_length=1, max_length=3)] = ("add",)
    unit: Literal["scale", "kl"] = "scale"


class JudgeRequest(Request):
    """A judge that also rates the answers: the loaded model (`self`), or the operator's `endpoint`.
    concept: in words; absent, the vector's description, or its name."""

    by: Literal["self", "endpoint"]
    concept: Annotated[str, Field(min_length=1, max_length=1000)] | None = None


class DoseResponseRequest(EvaluationFields):
    """Many strengths at the same layers, compared with random directions of the same dose.
    neutral: prompts on which damage is measured. save: store the result in the vector's card, as its next version."""

    kind: Literal["dose_response"]
    layers: Layers = "recommended"
    random_directions: Annotated[Whole, Field(ge=0, le=32)] = 8
    judge: JudgeRequest | None = None
    save: Flag = False


class CalibrationRequest(Request):
    """Finds the strengths that change the predictions on neutral text by 1 nat at the 95th percentile of the tokens, at each layer
    alone and in both directions.
    operation: `apply` calibrates the vector's map, which has one direction and no unit `kl`, so that nothing can be saved.
    neutral: absent, the package's. save: store them in the vector's next version, so that unit `kl` can be used."""

    kind: Literal["calibration"]
    vector: Name
    operation: Literal["add", "apply"] = "add"
    layers: Layers = "recommended"
    neutral: Texts | None = None
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=512)] = 32
    temperature: Annotated[Number, Field(ge=0, le=100)] = 0.7
    seed: Seed = 0
    save: Flag = False


StrengthsRequest: TypeAlias = LayerSweepRequest | DoseResponseRequest
"""Evaluations over many strengths."""


EvaluationRequest: TypeAlias = Annotated[
    StrengthsRequest | CalibrationRequest | ReportRequest | ChoicesRequest, Field(discriminator="kind")
]


class LayerPointAnswer(Answer):
    """One vector by one operation at one layer and strength (in natural scales). split: whether these prompts choose
    (`validation`) or report (`test`). moved: shift of the score along the sign of the strength. kl: of the tokens of neutral text,
    95th percentile, in nats. pareto: no other point of the validation moves the text further at no more KL.
    chance: of the test, what a random vector, with a direction of its own at each layer, exceeds in one case of twenty after the
    same choice of a layer; null where random directions gave none.
    advantage: moved less chance; null without chance. auroc: that of the vector's card."""

    vector: str = ""
    operation: Literal["add", "clamp", "apply"] = "add"
    split: Literal["validation", "test"] = "validation"
    layer: int
    strength: Measured
    moved: Estimate
    advantage: Estimate | None = None
    perplexity_ratio: Measured
    repetition: Measured
    relative_dose: Measured
    kl: Measured = 0.0
    pareto: bool = False
    auroc: Measured | None
    perplexity_interval: tuple[Measured, Measured] | None = None
    chance: Measured | None = None

    @property
    def margin(self) -> float | None:
        """The lower end of the interval of the advantage where the strength holds; None where it does not."""
        interval = None if self.advantage is None else self.advantage.interval
        return None if interval is None else margin_of(interval[0], self.perplexity_interval)


class LayerSweepAnswer(Answer):
    """Points by vector, operation, layer and strength: those of the prompts that choose, then those of the prompts that report, at
    the vector, operation and layer with the largest lower end of the shift in coherent text. best: of the latter, moved furthest
    beyond random directions while the text stayed coherent; null if none did. recommended: of `add`. A dose-response at that layer
    has other random directions and makes no choice of a layer, so its recommended strengths can differ.
    scores: of every answer."""

    kind: Literal["layer_sweep"] = "layer_sweep"
    vector: str
    reading_layer: int
    unit: Literal["scale", "kl"] = "scale"
    points: list[LayerPointAnswer]
    best: LayerPointAnswer | None
    recommended: Recommended | None
    warnings: list[str]
    scores: tuple[ScoresAnswer, ...] = ()


@dataclass(frozen=True, slots=True)
class EvaluatedPoint(DosePoint):
    """One strength. chance: a random direction of the same dose exceeds it on either side of 0 in one case of twenty.
    advantage: shift along the sign of the strength, less chance; null at 0, and where random
    directions were drawn and all of them broke."""

    advantage: Estimate | None = None


class JudgedPointAnswer(Answer):
    """One strength: means from 0 to 2 over the `judged` answers with all three ratings; `failed` lack one.
    overall: harmonic mean of an answer's three."""

    strength: Measured
    concept: Estimate | None
    instruction: Estimate | None
    fluency: Estimate | None
    overall: Estimate | None
    judged: int
    failed: int


class JudgementAnswer(Answer):
    """The judge's ratings, by strength. failures: how many were `unreachable` or `unreadable`."""

    by: Literal["self", "endpoint"]
    concept: str
    points: list[JudgedPointAnswer]
    ratings: int
    failures: dict[str, int]
    warnings: tuple[str, ...] = Field((), exclude=True)


class DoseResponseAnswer(Answer):
    """Points by strength; scores are shifts, in `unit`, against the unsteered answers, whose mean is baseline_score.
    recommended: strengths that moved the concept beyond chance and kept the text coherent; null on a side where none did.
    anti_steered: share of prompts whose score falls as the strength grows. scores: of every answer.
    saved: the vector's new version, if requested and stored."""

    kind: Literal["dose_response"] = "dose_response"
    vector: str
    layers: tuple[int, ...]
    reading_layer: int
    unit: str
    baseline_score: Measured
    points: tuple[EvaluatedPoint, ...]
    anti_steered: Measured | None
    recommended: Recommended
    warnings: tuple[str, ...]
    scores: tuple[ScoresAnswer, ...] = ()
    judgement: JudgementAnswer | None = None
    saved: VectorAnswer | None = None


class CalibratedAnswer(Answer):
    """One layer. positive, negative: the strength in natural scales; null where no strength tried comes near the limit.
    kl_positive, kl_negative: the 95th percentile of the KL of the tokens there, in nats."""

    layer: int
    positive: Measured | None
    negative: Measured | None
    kl_positive: Measured | None
    kl_negative: Measured | None


class CalibrationAnswer(Answer):
    """Points by layer. limit: nats at the 95th percentile of the tokens. tokens: of neutral text that were read. saved: the vector's
    new version, if requested and stored."""

    kind: Literal["calibration"] = "calibration"
    vector: str
    limit: Measured
    tokens: int
    points: list[CalibratedAnswer]
    warnings: tuple[str, ...]
    saved: VectorAnswer | None = None


StrengthsAnswer: TypeAlias = LayerSweepAnswer | DoseResponseAnswer


EvaluationAnswer: TypeAlias = Annotated[
    StrengthsAnswer | CalibrationAnswer | ReportAnswer | ChoicesAnswer, Field(discriminator="kind")
]
