"""The records of the store, the checks of what is written, and the JSON texts that are stored.
Profiles, jobs, links and entries of the audit log are the models of steering/schemas, as they go over the wire."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from pydantic import Field, ValidationError, model_validator

from steering.errors import InvalidRequest, LimitExceeded, StoreCorrupt
from steering.namespaces import SHARED
from steering.schemas.resources import JobAnswer, JobError, JobProgress
from steering.spec import SteeringSpec
from steering.strict_json import dump_json, load_json
from steering.vectors import VectorSummary, check_name

log = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S")
Topic: TypeAlias = Literal["keys", "default_steering", "documents", "jobs"]
"""What servers hold in memory and read again when it changes. jobs: the cancellation of a job was requested."""

DESCRIPTION_LIMIT = 4096
SEARCH_LIMIT = 256
TAG_LIMIT = 32
OWNER_LIMIT = 64
INTERRUPTED = {"code": "interrupted", "message": "the server stopped before this job ended; start it again"}
RECORD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""What the id of a job has to match in full."""
_REFUSED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Entries of a listing. damaged: the ids or names of entries that are left out because they cannot be read."""

    items: tuple[T, ...]
    next_cursor: str | None = None
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VersionPage:
    """Versions of one name, newest first. namespace: of them all. next_before: the `before` of the next page."""

    namespace: str
    versions: tuple[VectorSummary, ...]
    next_before: int | None
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProfileName:
    """What a list of names has of a profile."""

    namespace: str
    name: str
    description: str


class JobRecord(JobAnswer):
    """A job as it goes over the wire, and what only the server knows of it. Dates and namespace are set by the store.
    request: what it was started with, without the texts of the caller. owner: the id of the server that runs it."""

    progress: JobProgress = JobProgress()
    error: JobError | None = None
    created_at: str = ""
    updated_at: str = ""
    result: dict[str, Any] | None = None
    request: dict[str, Any] = Field(default_factory=dict, exclude=True)
    owner: str = Field("", exclude=True)
    created_by: str = Field("", exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Takes the subject from the request: the name of the vector that the job makes or measures."""
        request = fields.get("request") or {}
        name = request.get("name") or request.get("vector")
        return {"subject": name, **fields} if isinstance(name, str) else fields

    def check(self) -> None:
        """Raises InvalidRequest or LimitExceeded for an id, a kind or an owner that cannot be stored."""
        if not RECORD_ID.fullmatch(self.id):
            raise InvalidRequest(f"{self.id[:80]!r} is not a job id: 1 to 64 letters, digits, '_', '-'", param="id")
        check_name(self.kind, "kind")
        check_text(self.owner, "owner", OWNER_LIMIT)


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a renewal of a server's lease found. servers: how many have a lease, this one included.
    ended: jobs of this server that it must stop. interrupted: how many jobs that no server runs were marked as interrupted now."""

    ended: frozenset[str] = frozenset()
    interrupted: int = 0
    servers: int = 1


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One API key. Dates are ISO 8601, UTC. namespace: where it stores vectors, profiles and jobs.
    digest: the SHA-256 of the key; the key itself is never stored. previous_digest: before its rotation, until previous_until."""

    id: str
    name: str
    digest: str
    scopes: tuple[str, ...]
    limits: Mapping[str, Any] = field(default_factory=dict)
    created_at: str = ""
    expires_at: str | None = None
    last_used_at: str | None = None
    namespace: str = SHARED
    previous_digest: str | None = None
    previous_until: str | None = None


KeyEdit: TypeAlias = Callable[[KeyRecord, Sequence[KeyRecord]], Mapping[str, Any] | None]
"""(the key, all others) -> the fields to set, by their names in KeyRecord; None deletes the key. What it raises changes nothing."""


def now() -> str:
    """Returns the time as `utc_text` writes it."""
    return utc_text(datetime.now(UTC))


def utc_text(moment: datetime) -> str:
    """Returns a UTC time in ISO 8601 with microseconds. The length is fixed, so the texts sort by time. Raises ValueError without a time zone."""
    if moment.tzinfo is None:
        raise ValueError("a time needs a time zone")
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def values_of(source: object, record: type[Any]) -> dict[str, Any]:
    """Returns what a record or a row of the database has under the names of the fields of the dataclass `record`."""
    return {field.name: getattr(source, field.name) for field in fields(record)}


def check_text(text: str, param: str, limit: int) -> None:
    """Raises LimitExceeded beyond `limit` characters, InvalidRequest for what no database stores."""
    if len(text) > limit:
        raise LimitExceeded(f"{param} has {len(text)} characters; at most {limit} are stored", param=param)
    if refused := _REFUSED.search(text):
        code = ord(refused[0])
        if code >= 0xD800:
            raise InvalidRequest(f"{param} contains a lone surrogate (U+{code:04X}), which is not text", param=param)
        raise InvalidRequest(f"{param} contains the control character U+{code:04X}", param=param)


def check_labels(description: str | None, tags: tuple[str, ...] | None) -> None:
    """Checks a description and tags where given. Raises LimitExceeded, InvalidRequest."""
    check_text(description or "", "description", DESCRIPTION_LIMIT)
    tags = tags or ()
    if len(tags) > TAG_LIMIT:
        raise LimitExceeded(f"{len(tags)} tags given; a vector has at most {TAG_LIMIT}", param="tags")
    for tag in tags:
        check_name(tag, "tags")
    if len(set(tags)) != len(tags):
        raise InvalidRequest("a tag is given twice", param="tags")


def write_steering(steering: SteeringSpec) -> str:
    """Writes a steering without the fields its caller left out, because some defaults are not valid when written."""
    return steering.model_dump_json(exclude_unset=True, by_alias=True)


def read_steering(text: str, where: str) -> SteeringSpec:
    """Reads a steering. Raises StoreCorrupt when the text is not one."""
    try:
        return SteeringSpec.model_validate_json(text)
    except ValidationError as error:
        raise StoreCorrupt(f"the steering stored in {where} cannot be read") from error


def write_record(value: Mapping[str, Any] | None, param: str) -> str | None:
    """Writes a mapping as JSON. Raises InvalidRequest for what JSON cannot represent, NaN included."""
    return None if value is None else dump_json(dict(value), param)


def read_record(text: str | None, where: str) -> dict[str, Any] | None:
    """Reads a mapping. Raises StoreCorrupt when the text is not a JSON object."""
    if text is None:
        return None
    try:
        value = load_json(text, where)
    except InvalidRequest as error:
        raise StoreCorrupt(f"the record stored in {where} cannot be read") from error
    if not isinstance(value, dict):
        raise StoreCorrupt(f"the record stored in {where} is not an object")
    return value


def read_valid(read: Callable[[S], T], rows: Iterable[S]) -> tuple[tuple[T, ...], tuple[S, ...]]:
    """Returns what can be read, and the rows whose reading raises StoreCorrupt: one must not hide the others."""
    valid, damaged = list[T](), list[S]()
    for row in rows:
        try:
            valid.append(read(row))
        except StoreCorrupt as error:
            log.warning("left out of a listing: %s", error.message)
            damaged.append(row)
    return tuple(valid), tuple(damaged)
