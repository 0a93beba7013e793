"""Records on the wire: everything an answer depended on, enough to make it again."""

from typing import Annotated

from pydantic import Field

from steering.schemas.base import Number, Request, Whole
from steering.spec import InterventionSpec

TokenId = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]


class RecordedModel(Request):
    """Which model wrote it, on what: tokens are promised for the same weights, dtype and engine."""

    name: str
    fingerprint: str
    dtype: str
    engine: str


class RecordedSampling(Request):
    """How every token was chosen."""

    max_tokens: Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
    temperature: Annotated[Number, Field(ge=0, le=100)]
    top_p: Annotated[Number, Field(gt=0, le=1)]
    top_k: Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
    min_p: Annotated[Number, Field(ge=0, le=1)]
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)]
    stop: tuple[Annotated[str, Field(min_length=1)], ...]
    seed: Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]


class Record(Request):
    """An answer's record. prompt: token ids. interventions: with every vector pinned to its version and every layer
    named. vectors: `name@version` -> SHA-256 of each. fingerprint: of the plan they made."""

    prompt: Annotated[tuple[TokenId, ...], Field(min_length=1)]
    sampling: RecordedSampling
    n: Annotated[Whole, Field(ge=1)]
    interventions: Annotated[tuple[InterventionSpec, ...], Field(max_length=64)]
    vectors: dict[str, str]
    fingerprint: str
    model: RecordedModel
