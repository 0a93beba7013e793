"""Creates, changes, rotates, lists and deletes API keys."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from app.errors import PreconditionFailed
from app.policy.keys import damage_of, digest_of, new_key_id, new_secret, readable, utc_text
from app.state import AppState
from steering.errors import InvalidRequest
from steering.schemas.governance import (
    ChangeKeyRequest,
    CreateKeyRequest,
    KeyAnswer,
    KeyList,
    NewKeyAnswer,
    RotateKeyRequest,
)
from steering.store.governance import KeyRecord
from steering.vectors import VectorId

_CHANGEABLE = ("id", "name", "scopes", "digest", "expires_at", "namespace", "previous_until")


async def create(state: AppState, body: CreateKeyRequest) -> NewKeyAnswer:
    """Creates a key and returns it; only its digest is stored.

    Raises InvalidRequest where the first key has no scope `admin`: nobody could manage keys afterwards.
    """
    if not state.keys.required and "admin" not in body.scopes:
        raise InvalidRequest("the first key needs the scope 'admin', or no one could manage keys", param="scopes")
    secret = new_secret()
    record = KeyRecord(id=new_key_id(), digest=digest_of(secret), **_fields(body))
    stored = await state.keys.create(record, state.store)
    return NewKeyAnswer(**dict(_answer(state, stored)), key=secret)


async def change(
    state: AppState, key_id: str, body: ChangeKeyRequest, if_match: str | None, *, force: bool
) -> KeyAnswer:
    """Changes a key. Raises KeyNotFound, LastAdminKey, PreconditionFailed where it is not the one that the caller has read."""

    def edit(record: KeyRecord, _: Sequence[KeyRecord]) -> dict[str, Any]:
        _check_match(record, if_match)
        fields = _fields(body)
        if "limits" in fields and body.limits is not None:
            asked = body.limits.model_dump(mode="json", include=body.limits.model_fields_set)
            merged = {**readable(record).limits, **asked}
            fields["limits"] = {name: value for name, value in merged.items() if value is not None}
        elif "limits" in body.model_fields_set:
            fields["limits"] = {}
        return fields

    changed = await state.keys.edit(key_id, edit, state.store, force=force)
    assert changed is not None, "it was changed"
    return _answer(state, changed)


async def rotate(state: AppState, key_id: str, body: RotateKeyRequest, if_match: str | None) -> NewKeyAnswer:
    """Gives a key a new secret. Id, limits, and what it has stored and counted stay. Raises KeyNotFound, PreconditionFailed."""
    secret = new_secret()

    def edit(record: KeyRecord, _: Sequence[KeyRecord]) -> dict[str, Any]:
        _check_match(record, if_match)
        until = datetime.now(UTC) + timedelta(seconds=body.old_valid_seconds)
        previous = (record.digest, utc_text(until)) if body.old_valid_seconds else (None, None)
        return {"digest": digest_of(secret), "previous_digest": previous[0], "previous_until": previous[1]}

    changed = await state.keys.edit(key_id, edit, state.store)
    assert changed is not None, "it was changed"
    return NewKeyAnswer(**dict(_answer(state, changed)), key=secret)


async def delete(state: AppState, key_id: str, if_match: str | None, *, force: bool, cancel_jobs: bool) -> None:
    """Deletes a key; requests with it are refused from now on. Raises KeyNotFound, LastAdminKey, PreconditionFailed."""

    def edit(record: KeyRecord, _: Sequence[KeyRecord]) -> None:
        _check_match(record, if_match)

    await state.keys.edit(key_id, edit, state.store, force=force)
    if cancel_jobs:
        await state.jobs.cancel_of(key_id)


def _check_match(record: KeyRecord, if_match: str | None) -> None:
    """Raises PreconditionFailed where the caller has read another version of a key."""
    if if_match is None or if_match.strip() == "*":
        return
    if etag_of(record) not in [one.strip() for one in if_match.split(",")]:
        raise PreconditionFailed(
            f"key {record.id} has changed since you read it (If-Match {if_match[:80]}, it is {etag_of(record)} now); read it again",
            param="If-Match",
        )


def etag_of(record: KeyRecord) -> str:
    """Returns the ETag of what can be changed of a key; its use changes nothing."""
    content = json.dumps([*(getattr(record, name) for name in _CHANGEABLE), dict(record.limits)], sort_keys=True)
    return f'"{hashlib.sha256(content.encode()).hexdigest()[:16]}"'


def _fields(body: CreateKeyRequest | ChangeKeyRequest) -> dict[str, Any]:
    """Returns the given fields as a KeyRecord has them."""
    fields = body.model_dump(include={"name", "namespace"}, exclude_none=True)
    if body.scopes is not None:
        fields["scopes"] = tuple(dict.fromkeys(body.scopes))
    if body.limits is not None:
        for name in body.limits.vectors or ():  # no vector has another name, so that nothing could be steered with
            VectorId.parse(name, "limits.vectors")
        fields["limits"] = body.limits.model_dump(mode="json", exclude_none=True)
    if "expires_at" in body.model_fields_set:
        fields["expires_at"] = None if body.expires_at is None else utc_text(body.expires_at)
    return fields


def _answer(state: AppState, record: KeyRecord) -> KeyAnswer:
    shown = replace(readable(record), last_used_at=state.keys.last_used_at(record))
    answer = KeyAnswer.model_validate(shown, from_attributes=True)
    return answer.model_copy(update={"etag": etag_of(record)})


async def find(state: AppState) -> KeyList:
    """Lists the keys of the database, with the latest use, and says which are damaged."""
    records = await state.store.keys.all()
    damaged = [(record.id, damage) for record in records if (damage := damage_of(record)) is not None]
    warnings = tuple(f"key {key_id} may do nothing: {damage}; restore or delete it" for key_id, damage in damaged)
    return KeyList(data=[_answer(state, record) for record in records], warnings=warnings)
