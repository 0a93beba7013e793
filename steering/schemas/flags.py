"""Flags on the wire: conditions on what a request reads of its own answers, and where they held."""

from typing import Annotated

from pydantic import Field, model_validator

from steering.schemas.base import Answer, Number, Request


class FlagCondition(Request):
    """Raised at every token whose readout of a vector, in natural scales, lies beyond the one bound given."""

    vector: Annotated[str, Field(max_length=128)]
    above: Number | None = None
    below: Number | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> "FlagCondition":
        if (self.above is None) == (self.below is None):
            raise ValueError("give exactly one of 'above' and 'below'")
        return self


class RaisedFlag(Answer):
    """A condition that held, and the indices of the generated tokens at which it did."""

    vector: str
    above: float | None = None
    below: float | None = None
    tokens: list[int]
