"""Spec: the base of everything a caller writes, the types of its fields, and InlineVector, a direction in place of a name."""

import hashlib
import math
import struct
from array import array
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, TypeAlias

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


def at_most(entries: int) -> BeforeValidator:
    """Refuses a larger object before its values are validated: pydantic would collect an error for each of them."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > entries:
            raise ValueError(f"{len(value)} entries given; at most {entries}")
        return value

    return BeforeValidator(check)


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
