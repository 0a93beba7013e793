"""The `steering` field of requests, the applied steering in responses, and replay records: everything an answer depended on."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from steering.namespaces import SHARED
from steering.schemas.base import Answer, Request, Whole
from steering.schemas.messages import MaxTokens, SamplingFields, Seed, TokenIds
from steering.spec import (
    MAX_MANDATORY,
    ConditionSpec,
    Hold,
    Hook,
    InlineVector,
    InterventionSpec,
    Measured,
    Role,
    Schedule,
    StrengthFrom,
    TokenScope,
    at_most,
)

Label = Annotated[str, Field(max_length=512)]


class RecordedModel(Request):
    """What wrote the answer. Tokens are the same for the same weights, dtype and engine; executors may round differently."""

    name: Label
    fingerprint: Label
    dtype: Label
    engine: Label
    executor: Label | None = None


class RecordedSampling(SamplingFields):
    """How every token was chosen."""

    max_tokens: MaxTokens
    seed: Seed


RECORD_FORMAT = 3
"""Format of the records that this version writes. It changes with the recipe of the fingerprint or the meaning of a field. In records
of formats below 3, each intervention at a layer read what the ones before it had left."""


RecordedThinking: TypeAlias = Literal["begun", "possible", "none"]


class Record(Request):
    """An answer's record. interventions: every vector with its version, every layer listed. fingerprint: of the plan.
    format: absent in records of format 1. mandatory: those of the policy, which a replay takes from the policy of that time.
    vectors: `name@version` -> SHA-256 of each. prompt_roles: of the prompt's tokens, where a scope has roles. tools: true where a scope has
    phases, and the answer may call tools. thinking: where a scope has phases, of a model that thinks: whether the prompt has begun the
    thinking, the answer may begin it, or neither."""

    format: Annotated[Whole, Field(ge=1, le=1_000_000)] = 1
    prompt: TokenIds
    prompt_roles: Annotated[tuple[Role | None, ...], Field(max_length=1_000_000, fail_fast=True)] | None = None
    tools: Annotated[bool, Field(strict=True)] | None = None
    thinking: RecordedThinking | None = None
    sampling: RecordedSampling
    n: Annotated[Whole, Field(ge=1, le=1024)]
    interventions: Annotated[tuple[InterventionSpec, ...], Field(max_length=64, fail_fast=True)]
    mandatory: Annotated[tuple[InterventionSpec, ...], Field(max_length=MAX_MANDATORY, fail_fast=True)] = ()
    vectors: Annotated[dict[Label, Label], Field(max_length=1024), at_most(1024)]
    fingerprint: Label
    model: RecordedModel


class ReplayRequest(Record):
    """The record of an answer. directions: those that were given inline, which the server does not store."""

    directions: Annotated[tuple[InlineVector, ...], Field(max_length=64, fail_fast=True)] = ()


Interventions: TypeAlias = Annotated[tuple[InterventionSpec, ...], Field(max_length=256, fail_fast=True)]


class ProfileSteering(Request):
    """A stored profile, and interventions that are added after the profile's own."""

    profile: Annotated[str, Field(max_length=128)]
    interventions: Interventions = ()


def _form(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return "<list>"
    if isinstance(value, ProfileSteering) or (isinstance(value, dict) and "profile" in value):
        return "<profile>"
    return None


Steering: TypeAlias = Annotated[
    Annotated[Interventions, Tag("<list>")] | Annotated[ProfileSteering, Tag("<profile>")],
    Discriminator(
        _form,
        custom_error_type="steering_form",
        custom_error_message='expected a list of interventions, or an object with the name of a "profile" '
        '(and "interventions", to be added to it)',
    ),
]
"""A list of interventions (`[]`: none at all), or a profile. Absent: the server's default steering."""


class BatchFields(Request):
    """One line of a batch: a request, and a name by which its result is found."""

    id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    steering: Steering | None = None


class HeldStrength(Answer):
    """What the controller of `hold` did at one layer, as means over the generated tokens at which it acted.
    score: the readout after steering. last_strength: at the last token."""

    score: Measured
    strength: Measured
    last_strength: Measured


class AppliedIntervention(Answer):
    """One intervention as requested and as applied; what is absent is at its default or no parameter of the operation.
    namespace: of the vector; absent for an inline direction. relative_dose: measured |r' - r| / |r| per layer, mean over the
    `tokens` positions acted on. fired, fired_at: whether its condition held, and at which generated token first, -1 for the
    prompt. condition_score: that decided it last. held: of `hold`, by layer. strengths: of `share_dose`, by layer in `unit`. hook: absent for the residual. vector: empty for the
    ablation of a `head`."""

    vector: str
    namespace: str | None = None
    sha256: str
    operation: str
    layers: list[int]
    hook: Hook | None = None
    head: int | None = None
    strength: float | None = None
    unit: str | None = None
    low: float | None = None
    high: float | None = None
    degrees: float | None = None
    to: str | None = None
    target: str | None = None
    share_dose: bool | None = None
    scope: TokenScope | None = None
    when: ConditionSpec | None = None
    schedule: Schedule | None = None
    hold: Hold | None = None
    strength_from: StrengthFrom | None = None
    strengths: dict[str, Measured] | None = None
    planned_dose: dict[str, Measured]
    relative_dose: dict[str, Measured]
    tokens: int = 0
    fired: bool
    fired_at: int | None = None
    condition_score: Measured | None = None
    held: dict[str, HeldStrength] | None = None


class AppliedSteering(Answer):
    """The steering that was applied, in the order written. record: the body of POST /v1/replay.
    relative_dose_total: of all, summed over the layers. mandatory: those of the policy, which act after the others."""

    fingerprint: str
    applied: list[AppliedIntervention]
    mandatory: list[AppliedIntervention] | None = None
    relative_dose_total: Measured = 0.0
    warnings: list[str]
    record: Record | None = None


class DefaultSteering(Request):
    """The steering of requests without a `steering` field."""

    interventions: Annotated[tuple[InterventionSpec, ...], Field(max_length=64, fail_fast=True)]


class DefaultSteeringAnswer(Answer):
    """null: no default is set. namespace: whose default it is; namespaces without one use that of `shared`.
    warnings: those of requests under it, as where it is not applied because a vector of it is damaged."""

    namespace: str = SHARED
    interventions: tuple[InterventionSpec, ...] | None
    warnings: tuple[str, ...] = ()


def by_layer(values: dict[int, Any] | Any) -> dict[str, Any]:
    """Returns the mapping with layer indices as strings, ascending, because JSON keys are strings."""
    return {str(layer): values[layer] for layer in sorted(values)}
