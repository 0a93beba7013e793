"""The policy as an operator writes it, and the models of /v1/keys, /v1/audit, /v1/policy and /v1/monitors."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from steering.namespaces import SHARED
from steering.schemas.base import Answer, Moment, NamespaceName, Page, Request
from steering.spec import (
    MAX_MANDATORY,
    InterventionSpec,
    LayerIndex,
    Measured,
    Number,
    PhaseName,
    SteeringSpec,
    exactly_one,
    pinned,
    vector_names,
)

Scope = Literal["generate", "read", "write", "metrics", "admin"]
Scopes = Annotated[tuple[Scope, ...], Field(min_length=1, max_length=5, fail_fast=True)]
KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}$")]
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)]
VectorNames = Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=256, fail_fast=True)]


class KeyLimitsFields(Request):
    """Limits of one key. Absent: none of its own.
    rows: of the batch at once. jobs: unfinished at once. storage_bytes: of all that it and its jobs have stored.
    own_steering: `any`, `profiles` (requests may only name profiles) or `none`. vectors: the only ones to steer with, by
    name or as name@version. max_relative_dose: larger doses are refused, or scaled down where they show only at run time."""

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
    expires_at: Moment | None = None
    namespace: NamespaceName = SHARED


class ChangeLimitsFields(KeyLimitsFields):
    """Changes of limits. An absent one stays, null removes it."""

    own_steering: Literal["any", "profiles", "none"] | None = None  # type: ignore[assignment]


class ChangeKeyRequest(Request):
    """Changes a key. An absent field is unchanged, also one of `limits`, where null removes a limit; expires_at null removes it."""

    name: KeyName = None  # type: ignore[assignment] # where it is absent; null is refused
    scopes: Scopes = None  # type: ignore[assignment]
    limits: ChangeLimitsFields | None = None
    expires_at: Moment | None = None
    namespace: NamespaceName = None  # type: ignore[assignment]


class RotateKeyRequest(Request):
    """A new secret for a key. old_valid_seconds: how long the old one is valid beside it; 0: it is refused at once."""

    old_valid_seconds: Annotated[int, Field(strict=True, ge=0, le=2_592_000)] = 0


class KeyAnswer(Answer):
    """A key without its secret. previous_until: until when the secret before its rotation is valid. etag: for If-Match."""

    id: str
    name: str
    scopes: list[str]
    limits: KeyLimitsFields
    created_at: str
    expires_at: str | None
    last_used_at: str | None
    namespace: str = SHARED
    previous_until: str | None = None
    etag: str = ""


class NewKeyAnswer(KeyAnswer):
    """A new key. `key` is shown here only; the server keeps its SHA-256."""

    key: str


class KeyList(Answer):
    """All keys of the database in the order of creation. warnings: damaged keys, which may do nothing."""

    data: list[KeyAnswer]
    next_cursor: None = None
    warnings: tuple[str, ...] = ()


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


MAX_MONITORS = 32
MonitorName: TypeAlias = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
"""Names are labels of metrics and parts of URLs, like names of vectors."""
StoredName: TypeAlias = Annotated[str, Field(max_length=128)]
"""The name of a stored vector: a policy takes no inline direction."""
OwnSteering: TypeAlias = Literal["any", "profiles", "none"]


class MonitorSpec(Request):
    """A standing test on the score of a vector, in natural scales.
    at: `prompt` is its last position, `generated` each position that predicts a token. layer: absent, the middle of the
    recommended ones. action: `count` only counts, `flag` also reports in the response, `stop` also ends the answer.
    phase: only positions whose own token is in one of these phases, of `generated`."""

    name: MonitorName
    vector: StoredName
    above: Number | None = None
    below: Number | None = None
    at: Literal["prompt", "generated"] = "generated"
    layer: LayerIndex | None = None
    action: Literal["count", "flag", "stop"] = "count"
    phase: Annotated[tuple[PhaseName, ...], Field(min_length=1, max_length=5, fail_fast=True)] | None = None

    _one_bound = exactly_one("above", "below", start="a monitor needs")

    @model_validator(mode="after")
    def _phase_fits(self) -> "MonitorSpec":
        if self.phase is not None and self.at == "prompt":
            raise ValueError("a monitor of the prompt reads its last position and takes no 'phase'")
        return self


class SteeringLimits(Request):
    """What requests may steer with. None: no limit.
    max_relative_dose: summed over the layers; larger doses are refused, or scaled down where they show only at run time.
    own_steering: `any`, `profiles` (requests may only name profiles) or `none`. vectors: the only ones of `shared`, by name or
    as name@version."""

    max_relative_dose: Annotated[Number, Field(gt=0, le=1000)] | None = None
    own_steering: OwnSteering = "any"
    vectors: Annotated[tuple[StoredName, ...], Field(max_length=256, fail_fast=True)] | None = None


class PolicySpec(Request):
    """What holds for all traffic. mandatory: read what the interventions of a request have left."""

    mandatory: Annotated[tuple[InterventionSpec, ...], Field(max_length=MAX_MANDATORY, fail_fast=True)] = ()
    monitors: Annotated[tuple[MonitorSpec, ...], Field(max_length=MAX_MONITORS, fail_fast=True)] = ()
    limits: SteeringLimits = SteeringLimits()

    @model_validator(mode="after")
    def _unique_names(self) -> "PolicySpec":
        names = [one.name for one in self.monitors]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"names of monitors must be unique; given twice: {', '.join(twice)}")
        return self

    @property
    def steering(self) -> SteeringSpec:
        """The mandatory interventions."""
        return SteeringSpec(interventions=self.mandatory)

    def vector_names(self) -> Iterator[str]:
        """Every vector that it needs, as written; a name may come twice."""
        yield from vector_names(self.steering)
        yield from (one.vector for one in self.monitors)

    def pinned(self, names: Mapping[str, str]) -> "PolicySpec":
        """Returns the policy with other names for its vectors."""
        return self.model_copy(
            update={
                "mandatory": pinned(self.steering, names).interventions,
                "monitors": tuple(one.model_copy(update={"vector": names[one.vector]}) for one in self.monitors),
            }
        )


NO_POLICY = PolicySpec()


class PolicyAnswer(Answer):
    """The policy, with every vector pinned to its version. Without one everything is empty. warnings: of the mandatory interventions alone,
    such as a large planned dose; only in the response that sets them."""

    mandatory: tuple[InterventionSpec, ...]
    monitors: tuple[MonitorSpec, ...]
    limits: SteeringLimits
    warnings: tuple[str, ...] = ()


class MonitorAnswer(Answer):
    """A monitor, and what this server process measured since it was set.
    scores: how many were measured; raised: those beyond the bound; answers: those with at least one such score.
    mean, lowest, highest: of the scores; null before the first."""

    name: str
    vector: str
    layer: int
    above: float | None = None
    below: float | None = None
    at: Literal["prompt", "generated"]
    action: Literal["count", "flag", "stop"]
    phase: list[PhaseName] | None = None
    scores: int
    raised: int
    answers: int
    mean: Measured | None = None
    lowest: Measured | None = None
    highest: Measured | None = None


class DistributionAnswer(Answer):
    """How often scores fell into each bucket. counts[i]: above edges[i - 1] and up to edges[i]; the last: above all edges."""

    edges: list[float]
    counts: list[int]


class RaiseAnswer(Answer):
    """The first raise in one answer. token: its index, null for a prompt."""

    request_id: str
    score: Measured
    token: int | None
    at: datetime


class HourAnswer(Answer):
    """The scores of one hour."""

    start: datetime
    scores: int
    raised: int
    mean: Measured


class MonitorDetail(MonitorAnswer):
    """A monitor with its scores. latest: the latest raises, newest first. hours: oldest first, so that drift can be seen."""

    distribution: DistributionAnswer
    latest: list[RaiseAnswer]
    hours: list[HourAnswer]


class MonitorList(Answer):
    """The monitors of the policy, in its order."""

    data: list[MonitorAnswer]
    next_cursor: None = None
