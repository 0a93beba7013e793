"""Request and response models of the evaluation `choices` of POST /v1/evaluations: multiple choice on the caller's own items."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from steering.cards import Estimate
from steering.schemas.base import Answer, Request, Whole
from steering.schemas.messages import MAX_TEXTS, PlainText
from steering.schemas.steering import Steering
from steering.spec import InterventionSpec, Measured

MAX_CHOICES = 26


class ChoiceItem(Request):
    """One question. answer: index of the choice that is right, or that shows the behaviour that is measured."""

    question: PlainText
    choices: Annotated[tuple[PlainText, ...], Field(min_length=2, max_length=MAX_CHOICES, fail_fast=True)]
    answer: Annotated[Whole, Field(ge=0, lt=MAX_CHOICES)]

    @model_validator(mode="after")
    def _answer_is_an_index(self) -> Self:
        if self.answer >= len(self.choices):
            raise ValueError(f"'answer' is an index of 'choices' (0 to {len(self.choices) - 1}), got {self.answer}")
        return self


class ChoicesRequest(Request):
    """Asks each question with its choices under letters, in every rotation of their order, and reads the probabilities of the
    letters. steering: compared with no steering; absent, the server's default; `[]`: only the unsteered model is measured."""

    kind: Literal["choices"]
    items: Annotated[tuple[ChoiceItem, ...], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)]
    steering: Steering | None = None


class ChoiceScores(Answer):
    """One item, or the mean over items, always over the rotations of the choices. accuracy: share of the rotations in which the
    letter of the answer is the most probable one. log_odds: log p(answer) - log p(other choices together), in nats. mass:
    probability of all letters together. consistency: 1 where all rotations pick the same choice, else 0."""

    accuracy: Measured
    log_odds: Measured
    mass: Measured
    consistency: Measured


class ChoiceEstimates(Answer):
    """Means of ChoiceScores over the items, with 95 % intervals."""

    accuracy: Estimate
    log_odds: Estimate
    mass: Estimate
    consistency: Estimate


class ChoicesSummary(ChoiceEstimates):
    """One steering. letters: share of the prompts in which a letter is the most probable one, for every letter that was offered.
    Among items with k choices an unbiased reader picks each letter 1/k of the time; a larger share shows a preference for the
    letter or its position."""

    letters: dict[str, Measured]


class ChoiceItemAnswer(Answer):
    """One item. steered: null without steering."""

    unsteered: ChoiceScores
    steered: ChoiceScores | None


class ChoicesAnswer(Answer):
    """Means over the items, and each of them in the order given. change: steered minus unsteered, paired by item.
    steered, change: null without steering."""

    kind: Literal["choices"] = "choices"
    model: str
    interventions: list[InterventionSpec]
    fingerprint: str
    unsteered: ChoicesSummary
    steered: ChoicesSummary | None
    change: ChoiceEstimates | None
    items: list[ChoiceItemAnswer]
    warnings: list[str]
