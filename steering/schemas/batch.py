"""Request and response models of POST /v1/generate/batch."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from steering.schemas.base import Answer, ErrorDetail
from steering.schemas.generation import GenerateAnswer, GenerateRequest


class BatchLine(GenerateRequest):
    """One line of a batch: a request of POST /v1/generate, and a name by which its result is found."""

    id: Annotated[str, Field(min_length=1, max_length=128)] | None = None

    @model_validator(mode="after")
    def _plain(self) -> "BatchLine":
        if self.stream:
            raise ValueError("a request of a batch has no stream")
        return self


class BatchResult(Answer):
    """One line of the output, in the order of the input. Either response or error is present."""

    index: int
    id: str | None = None
    response: GenerateAnswer | None = None
    error: ErrorDetail | None = None


class BatchSummary(Answer):
    """The result of a batch job. failed: requests whose line has an error."""

    requests: int
    succeeded: int
    failed: int


JSON_LINES: dict[str, Any] = {"application/jsonl": {"schema": {"type": "string"}}}
"""OpenAPI's description of a body of JSON lines."""
