"""Calls for API keys and the audit log (scope `admin`)."""

from collections.abc import Sequence

from steering.client.calls.base import Call, JsonObject, json_fields, no_body, parsed, path_of
from steering.schemas.keys import AuditPage, KeyAnswer, KeyList, NewKeyAnswer


def create_key(
    name: str, scopes: Sequence[str], *, limits: JsonObject | None = None, expires_at: str | None = None
) -> Call[NewKeyAnswer]:
    """Creates a key; the result is the only place where it is shown."""
    body = json_fields(name=name, scopes=list(scopes), limits=limits, expires_at=expires_at)
    return Call("POST", "/v1/keys", parsed(NewKeyAnswer), body)


def list_keys() -> Call[KeyList]:
    """Lists the keys of the database."""
    return Call("GET", "/v1/keys", parsed(KeyList))


def change_key(
    key_id: str, *, name: str | None = None, scopes: Sequence[str] | None = None, limits: JsonObject | None = None
) -> Call[KeyAnswer]:
    """Changes a key; limits are replaced as a whole."""
    body = json_fields(name=name, scopes=None if scopes is None else list(scopes), limits=limits)
    return Call("PATCH", path_of("/v1/keys/{}", key_id), parsed(KeyAnswer), body)


def delete_key(key_id: str) -> Call[None]:
    """Deletes a key."""
    return Call("DELETE", path_of("/v1/keys/{}", key_id), no_body)


def read_audit(*, limit: int = 50, cursor: str | None = None) -> Call[AuditPage]:
    """Lists changes, newest first."""
    return Call("GET", "/v1/audit", parsed(AuditPage), query=json_fields(limit=limit, cursor=cursor))
