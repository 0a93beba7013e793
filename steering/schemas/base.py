"""Bases of every word on the wire: what comes in is strict, what goes out is finite."""

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, PlainSerializer

from steering.spec import Spec

Number = Annotated[FiniteFloat, Field(strict=True)]
"""A finite JSON number; `true` and `"1"` are none."""

Whole = Annotated[int, Field(strict=True)]
"""A whole JSON number."""

Flag = Annotated[bool, Field(strict=True)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: Any) -> Any:
    return math.nan if value is None else value


Measured = Annotated[
    float, BeforeValidator(_number), PlainSerializer(_finite, return_type=float | None, when_used="json")
]
"""A number we measured; should it not be finite, it is null on the wire, where NaN does not exist, and NaN once read."""


class Request(Spec):
    """What a caller sends."""


class Answer(BaseModel):
    """What we send."""

    model_config = ConfigDict(frozen=True)


class ErrorDetail(Answer):
    """message is for people; code is stable; param names the field it is about."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorAnswer(Answer):
    """Every answer that is not a success, and the data of every `error` event."""

    error: ErrorDetail


class Page(Answer):
    """One page of a list; `next_cursor` is opaque and null on the last page."""

    next_cursor: str | None = None


class PageQuery(Request):
    """Which part of a list."""

    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: Annotated[str, Field(max_length=512)] | None = None


def by_layer(values: dict[int, Any] | Any) -> dict[str, Any]:
    """Layer indices become strings, as JSON keys are; ascending."""
    return {str(layer): values[layer] for layer in sorted(values)}
