"""Defines conditions as a caller writes them: a Threshold, or `all`, `any` and `not` over others. No torch; JSON-ready."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from steering.spec_base import Label, LayerIndex, Number, Spec, VectorName


class Threshold(Spec):
    """A test on the live residual: the score of `vector` above or below a bound.
    `at`: the last prompt position, the mean over the prompt without its first position, or each token. `score`: projection
    in natural scales (poles at +0.5 and -0.5), cosine, or the probability of a probe. `until` is hysteresis for `at: token`:
    once true, it stays true until the score passes `until`."""

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


ConditionKind: TypeAlias = Literal["threshold", "all", "any", "not"]
_COMBINATIONS: dict[type[Spec], ConditionKind] = {AllOf: "all", AnyOf: "any", Not: "not"}


def condition_kind(value: Any) -> ConditionKind:
    """Returns which form a condition has, so that an error speaks of that form alone."""
    if isinstance(value, dict):
        return next((kind for kind in _COMBINATIONS.values() if kind in value), "threshold")
    return _COMBINATIONS.get(type(value), "threshold")


ConditionSpec: TypeAlias = Annotated[
    Annotated[Threshold, Tag("threshold")]
    | Annotated[AllOf, Tag("all")]
    | Annotated[AnyOf, Tag("any")]
    | Annotated[Not, Tag("not")],
    Discriminator(condition_kind),
]

MAX_CONDITION_NODES = 64
"""Nodes (tests, `all`, `any`, `not`) of all conditions of a request."""


def children_of(condition: Any) -> list[Any]:
    """Returns the conditions directly inside one, which may be as written."""
    match condition:
        case AllOf(all=children) | AnyOf(any=children) | {"all": [*children]} | {"any": [*children]}:
            return list(children)
        case Not(not_=child) | {"not": child} | {"not_": child}:
            return [child]
        case _:
            return []


def condition_nodes(condition: Any) -> Iterator[Any]:
    """Yields a condition, which may be as written, and everything inside it."""
    yield condition
    for child in children_of(condition):
        yield from condition_nodes(child)


def count_nodes(condition: Any) -> int:
    """Counts the nodes of a condition, which may be as written, up to one more than is allowed."""
    return sum(1 for _ in islice(condition_nodes(condition), MAX_CONDITION_NODES + 1))


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


for _form in _COMBINATIONS:
    _form.model_rebuild()
