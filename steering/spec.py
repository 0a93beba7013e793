"""Defines what a caller writes: SteeringSpec, InterventionSpec, conditions, TokenScope, Schedule, layers. No torch; JSON-ready.

Spec is the base of all; InlineVector is a direction in place of a name.
"""

import hashlib
import math
import struct
from array import array
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import islice
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    GetCoreSchemaHandler,
    PlainSerializer,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Index: TypeAlias = Annotated[int, Field(strict=True, ge=-1_000_000, le=1_000_000)]
LayerIndex: TypeAlias = Annotated[int, Field(strict=True, ge=-1000, le=1000)]
Number: TypeAlias = Annotated[FiniteFloat, Field(strict=True)]
"""A finite JSON number; `true` and `"1"` are refused."""
Measured: TypeAlias = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None, return_type=float | None, when_used="json"),
]
"""A measured number. A value that is not finite is written as null, because JSON has no NaN, and read back as NaN."""
Interval: TypeAlias = tuple[Measured, Measured]
"""Both ends of a range, or of a 95 % interval."""
Label: TypeAlias = Annotated[str, Field(max_length=64)]
T = TypeVar("T")
S = TypeVar("S", bound="Spec")


def at_most(entries: int) -> BeforeValidator:
    """Refuses a larger object before its values are validated: pydantic would collect an error for each of them."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > entries:
            raise ValueError(f"{len(value)} entries given; at most {entries}")
        return value

    return BeforeValidator(check)


def exactly_one(*names: str, start: str = "give") -> Any:
    """Returns a validator of a request: exactly one of these fields is given. start: of the message."""
    *others, last = (f"'{name}'" for name in names)

    def check(request: T) -> T:
        if sum(getattr(request, name) is not None for name in names) != 1:
            raise ValueError(f"{start} exactly one of {', '.join(others)} and {last}")
        return request

    return model_validator(mode="after")(check)


def at_most_one(one: str, other: str) -> Any:
    """Returns a validator of a request: these fields are not both given."""

    def check(request: T) -> T:
        if getattr(request, one) is not None and getattr(request, other) is not None:
            raise ValueError(f"give '{one}' or '{other}', not both")
        return request

    return model_validator(mode="after")(check)


@cache
def _keys_of(model: type[BaseModel]) -> tuple[str, ...]:
    """As a caller may write them."""
    return tuple(field.alias or name for name, field in model.model_fields.items())


class Spec(BaseModel):
    """Base of everything a caller writes: unknown keys refused, values never changed. Aliases are for names that Python reserves."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """Sooner than `extra` would, since that cannot tell what is known."""
        known = _keys_of(cls)
        if not isinstance(value, dict | cls):
            raise PydanticCustomError("object_type", "expected an object with {known}", {"known": ", ".join(known)})
        for key in value if isinstance(value, dict) else ():
            if key not in known and key not in cls.model_fields:
                context = {"key": str(key), "known": ", ".join(known)}
                raise PydanticCustomError("unknown_key", "this key is not known; known here: {known}", context)
        return value


LayerKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,3})$")]
"""A layer index as a JSON key."""
MAX_LAYERS = 512
MAX_WIDTH = 131_072
"""Numbers of one direction."""
Numbers = Annotated[tuple[Number, ...], Field(min_length=1, max_length=MAX_WIDTH, fail_fast=True)]
Directions: TypeAlias = Annotated[
    dict[LayerKey, Numbers], Field(min_length=1, max_length=MAX_LAYERS), at_most(MAX_LAYERS)
]
Scales: TypeAlias = Annotated[
    dict[LayerKey, Annotated[Number, Field(gt=0)]], Field(max_length=MAX_LAYERS), at_most(MAX_LAYERS)
]


class InlineDirections(Spec):
    """A direction in place of a vector's name: d_model numbers per layer. scale: the natural scale; absent, the length of the
    numbers given. It is used by this request and not stored."""

    directions: Directions
    scale: Scales | None = None


class InlineVector(str):
    """The name `inline:<first 12 of sha256>` of a direction given in the request, with its numbers.
    A str, so that whatever handles names handles it; a plain str of that form names nothing. sha256: over the layers in
    ascending order, each as `layer:` in ASCII, its numbers in little-endian float32 and its scale, if any, in float64."""

    __slots__ = ("directions", "scale", "sha256")
    directions: Mapping[str, "array[float]"]
    scale: Mapping[str, float] | None
    sha256: str

    @classmethod
    def of(cls, given: InlineDirections) -> "InlineVector":
        """Computes the name of given directions."""
        directions = {layer: array("f", given.directions[layer]) for layer in sorted(given.directions, key=int)}
        digest = hashlib.sha256()
        for layer, numbers in directions.items():
            digest.update(f"{layer}:".encode() + struct.pack(f"<{len(numbers)}f", *numbers))
            if given.scale is not None and layer in given.scale:
                digest.update(struct.pack("<d", given.scale[layer]))
        found = cls(f"{INLINE_PREFIX}{digest.hexdigest()[:12]}")
        found.directions, found.scale, found.sha256 = directions, given.scale, digest.hexdigest()
        return found

    def to_json(self) -> dict[str, Any]:
        """Returns the object from which it can be read again."""
        found: dict[str, Any] = {"directions": {layer: list(row) for layer, row in self.directions.items()}}
        return found if self.scale is None else {**found, "scale": dict(self.scale)}

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: Any, inner: Callable[[Any], InlineDirections]) -> "InlineVector":
            return value if isinstance(value, cls) else cls.of(inner(value))

        written = core_schema.plain_serializer_function_ser_schema(cls.to_json)
        return core_schema.no_info_wrap_validator_function(validate, handler(InlineDirections), serialization=written)


INLINE_PREFIX = "inline:"


def is_inline(name: str) -> bool:
    """Returns whether a name is that of an inline direction; no stored vector can have such a name."""
    return name.startswith(INLINE_PREFIX)


def _form(value: Any) -> str | None:
    if isinstance(value, InlineVector | dict):
        return "<inline>"
    return "<name>" if isinstance(value, str) else None


VectorName: TypeAlias = Annotated[
    Annotated[str, Field(max_length=128), Tag("<name>")] | Annotated[InlineVector, Tag("<inline>")],
    Discriminator(
        _form,
        custom_error_type="vector_form",
        custom_error_message='expected the name of a vector, or an object with its "directions"',
    ),
]
"""The name of a stored vector, or a direction given in the request."""


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

    _one_bound = exactly_one("above", "below", start="a condition needs")

    @model_validator(mode="after")
    def _hysteresis(self) -> "Threshold":
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


for _combination in _COMBINATIONS:
    _combination.model_rebuild()


Unit: TypeAlias = Literal["scale", "raw", "relative", "kl"]
Role: TypeAlias = Annotated[
    Literal["system", "user", "assistant", "tool"],
    BeforeValidator(lambda value: "system" if value == "developer" else value),
]
"""Whose message it is. `developer` is read as `system`, as in conversations."""
PhaseName: TypeAlias = Literal["prompt", "thinking", "answer", "tool", "json"]
PHASES: tuple[PhaseName, ...] = get_args(PhaseName)
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
    these; generated tokens and the last prompt position are the assistant's. phase: only positions whose own token is in one of
    these phases: the prompt with its last position, thinking, calls of tools, an answer that must be JSON, any other answer."""

    tokens: Literal["all", "prompt", "generated", "last"] = "all"
    start: Index | None = None
    end: Index | None = None
    token_ids: (
        Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_SCOPE_TOKENS, fail_fast=True)] | None
    ) = None
    roles: Annotated[tuple[Role, ...], Field(min_length=1, max_length=5, fail_fast=True)] | None = None
    phase: Annotated[tuple[PhaseName, ...], Field(min_length=1, max_length=5, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _window_fits(self) -> "TokenScope":
        if self.tokens in ("all", "last") and (self.start is not None or self.end is not None):
            raise ValueError(f"start and end are a window of 'prompt' or 'generated' positions, not of {self.tokens!r}")
        if self.tokens == "generated" and ((self.start or 0) < 0 or (self.end or 0) < 0):
            raise ValueError("a window over generated tokens cannot count from an end that is not yet known")
        return self

    @model_validator(mode="after")
    def _phase_fits(self) -> "TokenScope":
        if self.phase is None:
            return self
        generated = sorted(set(self.phase) - {"prompt"})
        if self.tokens in ("prompt", "last") and generated:
            raise ValueError(f"tokens {self.tokens!r} are in the phase 'prompt', not in {', '.join(generated)}")
        if self.tokens == "generated" and not generated:
            raise ValueError(
                "of tokens 'generated' only the last of the prompt is in the phase 'prompt': use tokens 'last'"
            )
        if self.roles is not None and "prompt" not in self.phase and "assistant" not in self.roles:
            raise ValueError(f"tokens in {', '.join(generated)} are the assistant's, not of {', '.join(self.roles)}")
        return self

    @property
    def selects(self) -> bool:
        """Whether it names tokens, roles or phases, so that some positions of its window may be out of scope."""
        return self.token_ids is not None or self.roles is not None or self.phase is not None


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


Hook: TypeAlias = Literal["residual", "attention", "mlp"]
"""The residual after a block, or the output of its attention or MLP module, before both are added to the residual."""
HeadIndex: TypeAlias = Annotated[int, Field(strict=True, ge=0, lt=1024)]
Activation: TypeAlias = Literal["linear", "relu"]
MAX_RANK = 16
"""Pairs of read and write directions of a map at one layer."""


class StrengthFrom(Spec):
    """Multiplies the strength of `add` at each token by the score of `vector` there plus `bias`; score and bias are in
    natural scales. `relu`: a sum below 0 counts as 0."""

    vector: VectorName
    bias: Number = 0.0
    activation: Activation = "linear"


class InterventionSpec(Spec):
    """One intervention as written: what, how much, where, when. target: what `ablate` sets the component to; None is `zero`.
    share_dose: the layers of `add` share the relative dose that `strength` has at the recommended layers, in equal parts.
    hold: a controller sets the strength of `add` at each generated token; `strength` is then the largest it may use.
    strength_from: the score of a vector at each token multiplies the strength of `add`.
    hook: where in the block it acts. head: `ablate` without a vector removes what this attention head computes."""

    vector: VectorName = ""
    operation: Label = "add"
    strength: Number = 1.0
    unit: Unit = "scale"
    low: Number | None = None
    high: Number | None = None
    degrees: Number | None = None
    to: VectorName | None = None
    target: Literal["zero", "middle"] | None = None
    layers: Layers = "recommended"
    hook: Hook = "residual"
    head: HeadIndex | None = None
    share_dose: Annotated[bool, Field(strict=True)] | None = None
    scope: TokenScope = TokenScope()
    when: ConditionSpec | None = None
    schedule: Schedule = Schedule()
    hold: Hold | None = None
    strength_from: StrengthFrom | None = None

    @model_validator(mode="after")
    def _held_while_generating(self) -> "InterventionSpec":
        """A controller follows generated tokens, so that is the scope where none is given. It still counts as not given."""
        if self.hold is not None and "scope" not in self.model_fields_set:
            object.__setattr__(self, "scope", TokenScope(tokens="generated"))
        return self

    @model_validator(mode="after")
    def _vector_or_head(self) -> "InterventionSpec":
        if self.head is None:
            if not self.vector:
                raise ValueError("'vector' is required: the name of a vector, or an object with its \"directions\"")
            return self
        if self.vector or self.operation != "ablate" or self.hook != "attention" or self.target is not None:
            raise ValueError("'head' takes operation 'ablate', hook 'attention', and neither 'vector' nor 'target'")
        if self.layers == "recommended":
            raise ValueError("'head' needs 'layers'; there is no vector that recommends any")
        return self

    @field_validator("when", mode="before")
    @classmethod
    def _bounded_tree(cls, value: Any) -> Any:
        """Counts the nodes before they are validated, since each level multiplies them by up to eight."""
        if count_nodes(value) > MAX_CONDITION_NODES:
            raise ValueError(f"a condition has at most {MAX_CONDITION_NODES} nodes")
        return value

    @property
    def other(self) -> str | None:
        """The second vector of the operation: that of `to` or `strength_from`."""
        return self.to if self.strength_from is None else self.strength_from.vector


class SteeringSpec(Spec):
    """The interventions of one request. Their order does not matter, but those of a policy come last."""

    interventions: Annotated[
        tuple[InterventionSpec, ...], Field(max_length=MAX_INTERVENTIONS + MAX_MANDATORY, fail_fast=True)
    ] = ()


def in_answers(spec: SteeringSpec) -> SteeringSpec:
    """Returns the spec with interventions whose scope is absent limited to the phase `answer`."""
    return SteeringSpec(
        interventions=tuple(
            item
            if "scope" in item.model_fields_set
            else item.model_copy(update={"scope": item.scope.model_copy(update={"phase": ("answer",)})})
            for item in spec.interventions
        )
    )


def vector_names(spec: SteeringSpec) -> Iterator[str]:
    """Every vector a spec names, as written, also inside conditions; a name may come twice."""
    names: list[str] = []

    def noted(name: str) -> str:
        names.append(name)
        return name

    _with_names(spec, noted)
    yield from names


def pinned(spec: SteeringSpec, names: Mapping[str, str]) -> SteeringSpec:
    """Returns the spec with other names for its vectors; everything else, absent fields included, is as written."""
    return SteeringSpec(interventions=tuple(renamed(item, names) for item in spec.interventions))


def renamed(item: InterventionSpec, names: Mapping[str, str], **changes: Any) -> InterventionSpec:
    """Returns the intervention with other names for its vectors, and with changes of other fields."""
    found = _with_names(item, names.__getitem__)
    return found.model_copy(update=changes) if changes else found


def _with_names(spec: S, change: Callable[[str], str]) -> S:
    """Returns a spec with other names in its fields `vector` and `to`, and in the specs inside it."""

    def changed(name: str, value: Any) -> Any:
        if isinstance(value, Spec):
            return _with_names(value, change)
        if isinstance(value, tuple):
            return tuple(changed(name, one) for one in value)
        return change(value) if value and isinstance(value, str) and name in ("vector", "to") else value

    given = [name for name in type(spec).model_fields if name in spec.model_fields_set]
    return spec.model_copy(update={name: changed(name, getattr(spec, name)) for name in given})
