"""Request and response models of /v1/keys and /v1/audit."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from steering.namespaces import SHARED
from steering.schemas.base import Answer, NamespaceName, Number, Page, Request

Scope = Literal["generate", "read", "write", "admin"]
Scopes = Annotated[tuple[Scope, ...], Field(min_length=1, max_length=4, fail_fast=True)]
KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}$")]
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)]
VectorNames = Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=256, fail_fast=True)]


class KeyLimitsFields(Request):
    """Limits of one key. Absent: none of its own.

    rows: of the batch at once. jobs: unfinished at once. storage_bytes: of the vectors and links that it has stored.
    own_steering: `any`, `profiles` (requests may only name profiles) or `none`. vectors: the only ones to steer with.
    max_relative_dose: larger doses are refused, or scaled down where they show only at run time.
    """

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrency: Count | None = None
    rows: Count | None = None
    jobs: Count | None = None
    storage_bytes: Annotated[int, Field(strict=True, ge=0, le=1 << 50)] | None = None
    max_relative_dose: Annotated[Number, Field(gt=0, le=1000)] | None = None
    own_steering: Literal["any", "profiles", "none"] = "any"
    vectors: VectorNames | None = None


class CreateKeyRequest(Request):
    """A new key. expires_at: ISO 8601 with a time zone. namespace: of what it makes; it sees that and `shared`."""

    name: KeyName
    scopes: Scopes
    limits: KeyLimitsFields = Field(default_factory=KeyLimitsFields)
    expires_at: AwareDatetime | None = None
    namespace: NamespaceName = SHARED


class ChangeKeyRequest(Request):
    """Changes a key. An absent field is unchanged; `limits` are replaced as a whole; expires_at null removes it."""

    name: KeyName | None = None
    scopes: Scopes | None = None
    limits: KeyLimitsFields | None = None
    expires_at: AwareDatetime | None = None
    namespace: NamespaceName | None = None


class KeyAnswer(Answer):
    """A key without its secret."""

    id: str
    name: str
    scopes: list[str]
    limits: KeyLimitsFields
    created_at: str
    expires_at: str | None
    last_used_at: str | None
    namespace: str = SHARED


class NewKeyAnswer(KeyAnswer):
    """A new key. `key` is shown here only; the server keeps its SHA-256."""

    key: str


class KeyList(Answer):
    """All keys in the order of creation; those of the environment and of the key file are not among them."""

    data: list[KeyAnswer]
    next_cursor: None = None


class AuditEntryAnswer(Answer):
    """One change: when, by which key, which route, on what."""

    at: datetime
    key: str
    action: str
    target: str
    request_id: str
    status: int


class AuditPage(Page):
    """Entries of the audit log, newest first."""

    data: list[AuditEntryAnswer]
