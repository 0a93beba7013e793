"""Defines what a caller writes: SteeringSpec, InterventionSpec, TokenScope, Schedule, layers. No torch; JSON-ready."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, FiniteFloat, field_validator, model_validator

from steering.condition_spec import (
    MAX_CONDITION_NODES,
    ConditionSpec,
    Threshold,
    condition_nodes,
    count_nodes,
    renamed_condition,
)
from steering.spec_base import Index, Label, LayerIndex, Number, Spec, VectorName

Unit: TypeAlias = Literal["scale", "raw", "relative"]
Role: TypeAlias = Literal["system", "developer", "user", "assistant"]
TokenId: TypeAlias = Annotated[int, Field(strict=True, ge=0, le=10_000_000)]
MAX_SCOPE_TOKENS = 256
MAX_INTERVENTIONS = 64
"""Interventions that one request, profile or default may list."""
MAX_MANDATORY = 16
"""Interventions of a policy."""


class LayerRange(Spec):
    """Half-open: `{"from": 10, "to": 16}` is layers 10 to 15. Negative counts from the top."""

    from_: LayerIndex = Field(alias="from")
    to: LayerIndex


Layers: TypeAlias = (
    Literal["recommended", "all"]
    | Annotated[tuple[LayerIndex, ...], Field(min_length=1, max_length=256, fail_fast=True)]
    | LayerRange
)


class TokenScope(Spec):
    """Which positions an intervention acts on.
    `generated` begins at the last prompt position, because that position predicts the first generated token.
    start, end: a half-open window over prompt positions (negative counts from the end) or over generated tokens.
    token_ids: only positions whose own token is one of these. roles: only tokens of a message's content whose role is one of
    these; generated tokens and the last prompt position are the assistant's."""

    tokens: Literal["all", "prompt", "generated", "last"] = "all"
    start: Index | None = None
    end: Index | None = None
    token_ids: (
        Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_SCOPE_TOKENS, fail_fast=True)] | None
    ) = None
    roles: Annotated[tuple[Role, ...], Field(min_length=1, max_length=4, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _window_fits(self) -> "TokenScope":
        if self.tokens in ("all", "last") and (self.start is not None or self.end is not None):
            raise ValueError(f"start and end are a window of 'prompt' or 'generated' positions, not of {self.tokens!r}")
        if self.tokens == "generated" and ((self.start or 0) < 0 or (self.end or 0) < 0):
            raise ValueError("a window over generated tokens cannot count from an end that is not yet known")
        return self

    @property
    def selects(self) -> bool:
        """Whether it names tokens or roles, so that some positions of its window may be out of scope."""
        return self.token_ids is not None or self.roles is not None


class Schedule(Spec):
    """How the strength changes over the generated tokens: from 1 to `to` over `tokens` of them, then stays there."""

    kind: Literal["constant", "linear", "cosine", "exponential", "warmup"] = "constant"
    to: Number = 0.0
    tokens: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> "Schedule":
        if self.kind == "constant":
            if self.tokens is not None or self.to != 0.0:
                raise ValueError("a constant schedule takes neither 'to' nor 'tokens'")
            return self
        if self.tokens is None:
            raise ValueError(f"schedule {self.kind!r} needs 'tokens'")
        if self.kind == "exponential" and not self.to > 0.0:
            raise ValueError("an exponential schedule needs 'to' above 0")
        if self.kind == "warmup" and self.to != 0.0:
            raise ValueError("a warmup goes from 0 to 1 and takes no 'to'")
        return self


class Hold(Spec):
    """Closed-loop control: the strength follows the readout, so that the mean of the readout stays at `score`.
    score: the set point, in natural scales, centred on the poles. The gains are those of a proportional-integral controller;
    their bounds keep the loop stable where the readout moves by as much as the strength."""

    score: Number
    integral_gain: Annotated[FiniteFloat, Field(strict=True, gt=0.0, le=1.0)] = 0.3
    proportional_gain: Annotated[FiniteFloat, Field(strict=True, ge=0.0, lt=0.5)] = 0.0


class InterventionSpec(Spec):
    """One intervention as written: what, how much, where, when. target: what `ablate` sets the component to; None is `zero`.
    share_dose: the layers of `add` share the relative dose that `strength` has at the recommended layers, in equal parts.
    hold: a controller sets the strength of `add` at each generated token; `strength` is then the largest it may use."""

    vector: VectorName
    operation: Label = "add"
    strength: Number = 1.0
    unit: Unit = "scale"
    low: Number | None = None
    high: Number | None = None
    degrees: Number | None = None
    to: VectorName | None = None
    target: Literal["zero", "middle"] | None = None
    layers: Layers = "recommended"
    share_dose: Annotated[bool, Field(strict=True)] | None = None
    scope: TokenScope = TokenScope()
    when: ConditionSpec | None = None
    schedule: Schedule = Schedule()
    hold: Hold | None = None

    @model_validator(mode="before")
    @classmethod
    def _held_while_generating(cls, value: Any) -> Any:
        """A controller follows generated tokens, so that is the scope where none is given."""
        if isinstance(value, dict) and value.get("hold") is not None and "scope" not in value:
            return {**value, "scope": {"tokens": "generated"}}
        return value

    @field_validator("when", mode="before")
    @classmethod
    def _bounded_tree(cls, value: Any) -> Any:
        """Counts the nodes before they are validated, since each level multiplies them by up to eight."""
        if count_nodes(value) > MAX_CONDITION_NODES:
            raise ValueError(f"a condition has at most {MAX_CONDITION_NODES} nodes")
        return value


class SteeringSpec(Spec):
    """The interventions of one request. Their order does not matter, but those of a policy come last."""

    interventions: Annotated[
        tuple[InterventionSpec, ...], Field(max_length=MAX_INTERVENTIONS + MAX_MANDATORY, fail_fast=True)
    ] = ()


def vector_names(spec: SteeringSpec) -> Iterator[str]:
    """Every vector a spec names, as written, also inside conditions; a name may come twice."""
    for item in spec.interventions:
        yield item.vector
        if item.to is not None:
            yield item.to
        if item.when is not None:
            yield from (node.vector for node in condition_nodes(item.when) if isinstance(node, Threshold))


def pinned(spec: SteeringSpec, names: Mapping[str, str]) -> SteeringSpec:
    """Returns the spec with other names for its vectors; everything else, absent fields included, is as written."""
    return SteeringSpec(interventions=tuple(renamed(item, names) for item in spec.interventions))


def renamed(item: InterventionSpec, names: Mapping[str, str], **changes: Any) -> InterventionSpec:
    """Returns the intervention with other names for its vectors, and with changes of other fields."""
    changes["vector"] = names[item.vector]
    if item.to is not None:
        changes["to"] = names[item.to]
    if item.when is not None:
        changes["when"] = renamed_condition(item.when, names)
    return item.model_copy(update=changes)
