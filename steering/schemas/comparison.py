"""Request and response models of POST /v1/compare."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from steering.cards import Estimate
from steering.schemas.base import Answer, ErrorDetail, Request
from steering.schemas.generation import Choice
from steering.schemas.messages import ChoiceFields, PlainText, PromptFields
from steering.schemas.steering import AppliedSteering, Steering
from steering.spec import InterventionSpec, Measured, Number

ArmName = Annotated[str, Field(min_length=1, max_length=64)]


class ArmFields(Request):
    """One side: its steering (absent: the server default), and a system prompt if the arm differs by that."""

    name: ArmName
    steering: Steering | None = None
    system: PlainText | None = None


class CompareRequest(PromptFields, ChoiceFields):
    """One prompt, one seed, one batch, and exactly one of `arms`, `steering` (arms `base` and `steered`), and `strengths`
    with `intervention` (an arm for each strength)."""

    arms: Annotated[tuple[ArmFields, ...], Field(min_length=1, max_length=256, fail_fast=True)] | None = None
    steering: Steering | None = None
    intervention: InterventionSpec | None = None
    strengths: Annotated[tuple[Number, ...], Field(min_length=1, max_length=256, fail_fast=True)] | None = None
    baseline: ArmName | None = Field(None, description="an arm's name; absent, the first arm")

    @model_validator(mode="after")
    def _one_form(self) -> "CompareRequest":
        if (self.intervention is None) != (self.strengths is None):
            raise ValueError("'strengths' and 'intervention' come together")
        given = [name for name in ("arms", "steering", "strengths") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of 'arms', 'steering', and 'strengths' with 'intervention'")
        return self


class MeanAnswer(Answer):
    """A mean."""

    mean: Measured


class DiffSpanAnswer(Answer):
    """A run of words that is equal in both texts, or differs."""

    kind: Literal["equal", "replace", "delete", "insert"]
    baseline: str
    other: str


class MetricsAnswer(Answer):
    """One arm. perplexity: of its tokens under the unsteered model. readout: of the finished texts, read again by it.
    steered_readout: measured in the steered stream; it contains what was added."""

    perplexity: Measured | None = None
    distinct_2: Measured
    repetition: Measured
    readout: dict[str, MeanAnswer]
    steered_readout: dict[str, MeanAnswer]
    warnings: list[str]


class AgainstBaselineAnswer(Answer):
    """Differences from the baseline, choice by choice. kl_*: from the unsteered model, in nats, along the arm's tokens.
    first_divergence: null where two choices are the same. readout_shift: of `readout`."""

    kl_mean: Measured | None = None
    kl_per_token: list[list[Measured]]
    first_divergence: list[int | None]
    readout_shift: dict[str, Estimate]
    diff: list[list[DiffSpanAnswer]]


class ArmAnswer(Answer):
    """One arm: its answers and metrics, or the error that ended it."""

    name: str
    choices: list[Choice]
    steering: AppliedSteering
    metrics: MetricsAnswer | None = None
    against_baseline: AgainstBaselineAnswer | None = None
    error: ErrorDetail | None = None


class CompareAnswer(Answer):
    """Arms in the order given. Also the data of `done`."""

    id: str
    model: str
    seed: int
    baseline: str
    arms: list[ArmAnswer]


class ArmErrorAnswer(Answer):
    """Data of an `error` event of one arm; the others continue."""

    arm: str
    error: ErrorDetail
