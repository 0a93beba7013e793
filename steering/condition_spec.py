"""Defines conditions as a caller writes them: a Threshold, or `all`, `any` and `not` over others. No torch; JSON-ready."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from steering.spec_base import Label, LayerIndex, Number, Spec, VectorName


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


def count_nodes(value: Any) -> int:
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


def renamed_condition(condition: ConditionSpec, names: Mapping[str, str]) -> ConditionSpec:
    """Returns the condition with every vector name replaced by its entry in `names`."""
    match condition:
        case Threshold():
            return condition.model_copy(update={"vector": names[condition.vector]})
        case AllOf():
            return AllOf(all=tuple(renamed_condition(child, names) for child in condition.all))
        case AnyOf():
            return AnyOf(any=tuple(renamed_condition(child, names) for child in condition.any))
        case Not():
            return Not(not_=renamed_condition(condition.not_, names))


AllOf.model_rebuild()
AnyOf.model_rebuild()
Not.model_rebuild()
