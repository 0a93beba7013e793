"""Creates, changes, lists and deletes API keys."""

from dataclasses import replace
from typing import Any

from app.policy.keys import damage_of, digest_of, new_key, readable, utc_text
from app.state import AppState
from steering.errors import InvalidRequest
from steering.schemas.governance import ChangeKeyRequest, CreateKeyRequest, KeyAnswer, KeyList, NewKeyAnswer
from steering.store.governance import KeyRecord


async def create(state: AppState, body: CreateKeyRequest) -> NewKeyAnswer:
    """Creates a key and returns it; only its digest is stored.

    Raises InvalidRequest where the first key has no scope `admin`: nobody could manage keys afterwards.
    """
    if state.keys.empty and "admin" not in body.scopes:
        raise InvalidRequest("the first key needs the scope 'admin', or no one could manage keys", param="scopes")
    key_id, secret = new_key()
    record = KeyRecord(id=key_id, digest=digest_of(secret), **_fields(body))
    stored = await state.keys.create(record, state.store)
    return NewKeyAnswer(**dict(_answer(state, stored)), key=secret)


async def change(state: AppState, key_id: str, body: ChangeKeyRequest) -> KeyAnswer:
    """Changes a key. Raises KeyNotFound."""
    return _answer(state, await state.keys.change(key_id, _fields(body), state.store))


def _fields(body: CreateKeyRequest | ChangeKeyRequest) -> dict[str, Any]:
    """Returns the given fields as a KeyRecord has them."""
    fields = body.model_dump(include={"name", "namespace"}, exclude_none=True)
    if body.scopes is not None:
        fields["scopes"] = tuple(dict.fromkeys(body.scopes))
    if body.limits is not None:
        fields["limits"] = body.limits.model_dump(mode="json", exclude_none=True)
    if "expires_at" in body.model_fields_set:
        fields["expires_at"] = None if body.expires_at is None else utc_text(body.expires_at)
    return fields


def _answer(state: AppState, record: KeyRecord) -> KeyAnswer:
    shown = replace(readable(record), last_used_at=state.keys.last_used_at(record))
    return KeyAnswer.model_validate(shown, from_attributes=True)


async def find(state: AppState) -> KeyList:
    """Lists the keys of the database, with the latest use, and says which are damaged."""
    records = await state.store.keys.all()
    damaged = [(record.id, damage) for record in records if (damage := damage_of(record)) is not None]
    warnings = tuple(f"key {key_id} may do nothing: {damage}; restore or delete it" for key_id, damage in damaged)
    return KeyList(data=[_answer(state, record) for record in records], warnings=warnings)


async def delete(state: AppState, key_id: str) -> None:
    """Deletes a key; requests with it are refused from now on. Raises KeyNotFound."""
    await state.keys.delete(key_id, state.store)
