"""Spec: the base of everything a caller writes, and the types of its fields. No torch; JSON-ready."""

from functools import cache
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator
from pydantic_core import PydanticCustomError

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
