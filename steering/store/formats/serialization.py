"""Serializes profiles, the default steering, jobs and links as JSON text, checked when written and when read."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from steering.errors import InvalidRequest, JobNotFound, KeyNotFound, LinkNotFound, ProfileNotFound, StoreCorrupt
from steering.spec import SteeringSpec
from steering.store.base import JobRecord, Link, Profile
from steering.store.rules import DESCRIPTION_LIMIT, check_text
from steering.strict_json import dump_json, load_json
from steering.vectors import check_name

JOB_STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")
OWNER_LIMIT = 64
UNFINISHED = ("queued", "running")
INTERRUPTED = {"code": "interrupted", "message": "the server stopped before this job ended; start it again"}
JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
KEY_ID = JOB_ID
LINK_ID = re.compile(r"[a-z2-7]{16}")
"""What ids have to match in full."""


def check_profile(profile: Profile) -> Profile:
    """Returns the profile. Raises InvalidRequest for a name or description that cannot be stored."""
    check_name(profile.name)
    check_text(profile.description, "description", DESCRIPTION_LIMIT)
    return profile


def check_job(job: JobRecord) -> JobRecord:
    """Returns the record. Raises InvalidRequest for an invalid id or status."""
    if not JOB_ID.fullmatch(job.id):
        raise InvalidRequest(f"{job.id[:80]!r} is not a job id: 1 to 64 letters, digits, '_', '-'", param="id")
    check_name(job.kind, "kind")
    check_text(job.owner, "owner", OWNER_LIMIT)
    if job.status not in JOB_STATUSES:
        raise InvalidRequest(f"job status {job.status!r} is not one of {', '.join(JOB_STATUSES)}", param="status")
    return job


def check_link(link: Link) -> str:
    """Returns the state of a link as JSON. Raises InvalidRequest for an id, a view or a state that cannot be stored."""
    if not LINK_ID.fullmatch(link.id):
        raise InvalidRequest(f"{link.id[:80]!r} is not a link id: 16 letters a-z and digits 2-7", param="id")
    check_name(link.view, "view")
    return dump_json(dict(link.state or {}), "state")


def profile_not_found(name: str) -> ProfileNotFound:
    """Returns the error for a missing profile."""
    return ProfileNotFound(f"there is no profile {name!r}", param="profile")


def job_not_found(job_id: str) -> JobNotFound:
    """Returns the error for a missing job."""
    return JobNotFound(f"there is no job {job_id[:80]!r}", param="job")


def key_not_found(key_id: str) -> KeyNotFound:
    """Returns the error for a missing API key."""
    return KeyNotFound(f"there is no key {key_id[:80]!r}", param="id")


def link_not_found(link_id: str) -> LinkNotFound:
    """Returns the error for a missing link."""
    return LinkNotFound(
        f"there is no link {link_id[:80]!r}: it was deleted, or saved on another server", param="link_id"
    )


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
