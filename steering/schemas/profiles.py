"""Request and response models of /v1/profiles."""

from typing import Annotated

from pydantic import Field

from steering.namespaces import SHARED
from steering.schemas.base import Answer, Request
from steering.schemas.vectors import Description
from steering.spec import InterventionSpec


class ProfileRequest(Request):
    """A named set of interventions, strengths included."""

    interventions: Annotated[tuple[InterventionSpec, ...], Field(min_length=1, max_length=64, fail_fast=True)]
    description: Description = ""


class ProfileAnswer(Answer):
    """A stored profile; its interventions as they were written, so that they can be stored again."""

    namespace: str = SHARED
    name: str
    description: str
    interventions: tuple[InterventionSpec, ...]
    created_at: str
    updated_at: str


class ProfileList(Answer):
    """All profiles, by name."""

    data: list[ProfileAnswer]
    next_cursor: None = None
