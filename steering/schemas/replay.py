"""Replay records: everything an answer depended on, enough to repeat it."""

from typing import Annotated

from pydantic import Field

from steering.schemas.base import Request, Whole
from steering.schemas.messages import TokenIds
from steering.schemas.sampling import MaxTokens, SamplingFields, Seed
from steering.spec import MAX_MANDATORY, InterventionSpec, Role
from steering.spec_base import InlineVector, at_most

Label = Annotated[str, Field(max_length=512)]


class RecordedModel(Request):
    """The model, dtype, engine and executor that wrote the answer.

    Tokens are the same for the same weights, dtype and engine; another executor may round differently.
    """

    name: Label
    fingerprint: Label
    dtype: Label
    engine: Label
    executor: Label | None = None


class RecordedSampling(SamplingFields):
    """How every token was chosen."""

    max_tokens: MaxTokens
    seed: Seed


class Record(Request):
    """An answer's record. prompt: token ids. interventions: every vector with its version, every layer
    listed. mandatory: those of the policy, which a replay takes from the policy of that time. vectors: `name@version` -> SHA-256
    of each. fingerprint: of the resolved plan. prompt_roles: of the prompt's tokens, where a scope has roles."""

    prompt: TokenIds
    prompt_roles: Annotated[tuple[Role | None, ...], Field(max_length=1_000_000, fail_fast=True)] | None = None
    sampling: RecordedSampling
    n: Annotated[Whole, Field(ge=1, le=1024)]
    interventions: Annotated[tuple[InterventionSpec, ...], Field(max_length=64, fail_fast=True)]
    mandatory: Annotated[tuple[InterventionSpec, ...], Field(max_length=MAX_MANDATORY, fail_fast=True)] = ()
    vectors: Annotated[dict[Label, Label], Field(max_length=1024), at_most(1024)]
    fingerprint: Label
    model: RecordedModel


class ReplayRequest(Record):
    """The record of an answer. directions: those that the answer was given inline, which the server does not store; they are
    matched by their SHA-256."""

    directions: Annotated[tuple[InlineVector, ...], Field(max_length=64, fail_fast=True)] = ()
