"""Defines what a caller writes: SteeringSpec, InterventionSpec, ConditionSpec, TokenScope, Schedule. No torch; JSON-ready."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, FiniteFloat, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

Unit: TypeAlias = Literal["scale", "raw", "relative"]
Index: TypeAlias = Annotated[int, Field(strict=True, ge=-1_000_000, le=1_000_000)]
LayerIndex: TypeAlias = Annotated[int, Field(strict=True, ge=-1000, le=1000)]
Number: TypeAlias = Annotated[FiniteFloat, Field(strict=True)]
VectorName: TypeAlias = Annotated[str, Field(max_length=128)]
Label: TypeAlias = Annotated[str, Field(max_length=64)]


@cache
def _keys_of(model: type[BaseModel]) -> tuple[str, ...]:
    """As a caller may write them."""
    return tuple(field.alias or name for name, field in model.model_fields.items())


class Spec(BaseModel):
    """Base of everything a caller writes: unknown keys refused, values never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """Sooner than `extra` would, since that cannot tell what is known."""
        known = _keys_of(cls)
        if not isinstance(value, dict | cls):
            raise PydanticCustomError("object_type", "expected an object with {known}", {"known": ", ".join(known)})
        for key in value if isinstance(value, dict) else ():
            if key not in known and not (cls.model_config.get("populate_by_name") and key in cls.model_fields):
                context = {"key": str(key), "known": ", ".join(known)}
                raise PydanticCustomError("unknown_key", "this key is not known; known here: {known}", context)
        return value


class LayerRange(Spec):
    """Half-open: `{"from": 10, "to": 16}` is layers 10 to 15. Negative counts from the top."""

    from_: LayerIndex = Field(alias="from")
    to: LayerIndex

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)


Layers: TypeAlias = (
    Literal["recommended", "all"]
    | Annotated[tuple[LayerIndex, ...], Field(min_length=1, max_length=256, fail_fast=True)]
    | LayerRange
)


class TokenScope(Spec):
    """Which positions an intervention acts on.

    `generated` begins at the last prompt position, because that position predicts the first generated token.
    `start` and `end` are a half-open window: over prompt positions for `prompt` (negative counts from its end), over
    generated tokens for `generated`.
    """

    tokens: Literal["all", "prompt", "generated", "last"] = "all"
    start: Index | None = None
    end: Index | None = None

    @model_validator(mode="after")
    def _window_fits(self) -> "TokenScope":
        if self.tokens in ("all", "last") and (self.start is not None or self.end is not None):
            raise ValueError(f"start and end are a window of 'prompt' or 'generated' positions, not of {self.tokens!r}")
        if self.tokens == "generated" and ((self.start or 0) < 0 or (self.end or 0) < 0):
            raise ValueError("a window over generated tokens cannot count from an end that is not yet known")
        return self


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


class Threshold(Spec):
    """A test on the live residual: the score of `vector` above or below a bound.

    `at`: the last prompt position, the mean over the prompt without its first position, or each token. `score` names how
    it is measured: projection in natural scales, centred so that the poles lie at +0.5 and -0.5; cosine; or the
    probability of a probe. `until` is hysteresis for `at: token`: once true, it stays true until the score passes `until`.
    """

    vector: VectorName
    above: Number | None = None
    below: Number | None = None
    at: Literal["prompt", "prompt_mean", "token"] = "prompt"
    layer: LayerIndex | None = None
    score: Label = "projection"
    until: Number | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> "Threshold":
        if (self.above is None) == (self.below is None):
            raise ValueError("a condition needs exactly one of 'above' and 'below'")
        if self.until is not None:
            if self.at != "token":
                raise ValueError("'until' is hysteresis over tokens and needs at: 'token'")
            if self.above is not None and self.until > self.above:
                raise ValueError("'until' must not be greater than 'above'")
            if self.below is not None and self.until < self.below:
                raise ValueError("'until' must not be less than 'below'")
        return self


class AllOf(Spec):
    """Every one of them holds."""

    all: Annotated[tuple["ConditionSpec", ...], Field(min_length=1, max_length=8, fail_fast=True)]


class AnyOf(Spec):
    """At least one of them holds."""

    any: Annotated[tuple["ConditionSpec", ...], Field(min_length=1, max_length=8, fail_fast=True)]


class Not(Spec):
    """It does not hold."""

    not_: "ConditionSpec" = Field(alias="not")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)


def _node_count(value: Any) -> int:
    """Counts the nodes of a condition tree as written, up to one more than is allowed."""
    count, level = 0, [value]
    while level and count <= MAX_CONDITION_NODES:
        count += len(level)
        children: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                for key in ("all", "any"):
                    inner = node.get(key)
                    children.extend(inner if isinstance(inner, list | tuple) else ())
                children.extend([node["not"]] if "not" in node else ())
            elif isinstance(node, AllOf | AnyOf):
                children.extend(node.all if isinstance(node, AllOf) else node.any)
            elif isinstance(node, Not):
                children.append(node.not_)
        level = children
    return count


def _condition_kind(value: Any) -> str:
    """Which form a condition has, so that an error speaks of that form alone."""
    if isinstance(value, dict):
        return next((key for key in ("all", "any", "not") if key in value), "threshold")
    forms: dict[type, str] = {AllOf: "all", AnyOf: "any", Not: "not"}
    return forms.get(type(value), "threshold")


ConditionSpec: TypeAlias = Annotated[
    Annotated[Threshold, Tag("threshold")]
    | Annotated[AllOf, Tag("all")]
    | Annotated[AnyOf, Tag("any")]
    | Annotated[Not, Tag("not")],
    Discriminator(_condition_kind),
]


MAX_CONDITION_NODES = 64
"""Nodes (tests, `all`, `any`, `not`) of all conditions of a request."""


def condition_nodes(condition: ConditionSpec) -> Iterator[ConditionSpec]:
    """Yields a condition and everything inside it."""
    yield condition
    match condition:
        case Threshold():
            return
        case AllOf():
            children = condition.all
        case AnyOf():
            children = condition.any
        case Not():
            children = (condition.not_,)
    for child in children:
        yield from condition_nodes(child)


class InterventionSpec(Spec):
    """One intervention as written: what, how much, where, when. target: what `ablate` sets the component to; None is `zero`."""

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
    scope: TokenScope = TokenScope()
    when: ConditionSpec | None = None
    schedule: Schedule = Schedule()

    @field_validator("when", mode="before")
    @classmethod
    def _bounded_tree(cls, value: Any) -> Any:
        """Counts the nodes before they are validated, since each level multiplies them by up to eight."""
        if _node_count(value) > MAX_CONDITION_NODES:
            raise ValueError(f"a condition has at most {MAX_CONDITION_NODES} nodes")
        return value


class SteeringSpec(Spec):
    """The interventions of one request, in the order in which they act at a layer."""

    interventions: Annotated[tuple[InterventionSpec, ...], Field(max_length=64, fail_fast=True)] = ()


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
    return SteeringSpec(interventions=tuple(_pinned(item, names) for item in spec.interventions))


def _pinned(item: InterventionSpec, names: Mapping[str, str]) -> InterventionSpec:
    changes: dict[str, Any] = {"vector": names[item.vector]}
    if item.to is not None:
        changes["to"] = names[item.to]
    if item.when is not None:
        changes["when"] = _renamed_condition(item.when, names)
    return item.model_copy(update=changes)


def renamed(item: InterventionSpec, names: Mapping[str, str], layers: tuple[int, ...]) -> InterventionSpec:
    """The same intervention with other names for its vectors, and its layers named one by one."""
    return item.model_copy(
        update={
            "vector": names[item.vector],
            "to": None if item.to is None else names[item.to],
            "when": None if item.when is None else _renamed_condition(item.when, names),
            "layers": layers,
        }
    )


def _renamed_condition(condition: ConditionSpec, names: Mapping[str, str]) -> ConditionSpec:
    match condition:
        case Threshold():
            return condition.model_copy(update={"vector": names[condition.vector]})
        case AllOf():
            return AllOf(all=tuple(_renamed_condition(child, names) for child in condition.all))
        case AnyOf():
            return AnyOf(any=tuple(_renamed_condition(child, names) for child in condition.any))
        case Not():
            return Not(not_=_renamed_condition(condition.not_, names))


AllOf.model_rebuild()
AnyOf.model_rebuild()
Not.model_rebuild()
InterventionSpec.model_rebuild()
