"""Calls for API keys, the audit log, the policy and its monitors (scope `admin`)."""

from collections.abc import Sequence

from steering.client.calls.base import Call, Intervention, JsonObject, json_fields, no_body, parsed, path_of
from steering.schemas.governance import (
    AuditPage,
    KeyAnswer,
    KeyList,
    MonitorDetail,
    MonitorList,
    NewKeyAnswer,
    PolicyAnswer,
)


def create_key(
    name: str,
    scopes: Sequence[str],
    *,
    limits: JsonObject | None = None,
    expires_at: str | None = None,
    namespace: str | None = None,
) -> Call[NewKeyAnswer]:
    """Creates a key; the result is the only place where it is shown. namespace: of what it makes, by default `shared`."""
    body = json_fields(name=name, scopes=list(scopes), limits=limits, expires_at=expires_at, namespace=namespace)
    return Call("POST", "/v1/keys", parsed(NewKeyAnswer), body, in_namespace=False)


def list_keys() -> Call[KeyList]:
    """Lists the keys of the database."""
    return Call("GET", "/v1/keys", parsed(KeyList), in_namespace=False)


def change_key(
    key_id: str,
    *,
    name: str | None = None,
    scopes: Sequence[str] | None = None,
    limits: JsonObject | None = None,
    namespace: str | None = None,
) -> Call[KeyAnswer]:
    """Changes a key; limits are replaced as a whole."""
    given = None if scopes is None else list(scopes)
    body = json_fields(name=name, scopes=given, limits=limits, namespace=namespace)
    return Call("PATCH", path_of("/v1/keys/{}", key_id), parsed(KeyAnswer), body, in_namespace=False)


def delete_key(key_id: str) -> Call[None]:
    """Deletes a key."""
    return Call("DELETE", path_of("/v1/keys/{}", key_id), no_body, in_namespace=False)


def read_audit(*, limit: int = 50, cursor: str | None = None) -> Call[AuditPage]:
    """Lists changes, newest first."""
    return Call(
        "GET", "/v1/audit", parsed(AuditPage), query=json_fields(limit=limit, cursor=cursor), in_namespace=False
    )


def set_policy(
    *,
    mandatory: Sequence[Intervention] | None = None,
    monitors: Sequence[JsonObject] | None = None,
    limits: JsonObject | None = None,
) -> Call[PolicyAnswer]:
    """Sets the policy of all traffic as a whole: what is absent is removed."""
    body = json_fields(mandatory=mandatory, monitors=monitors, limits=limits)
    return Call("PUT", "/v1/policy", parsed(PolicyAnswer), body, in_namespace=False)


def get_policy() -> Call[PolicyAnswer]:
    """Returns the policy; without one everything in it is empty."""
    return Call("GET", "/v1/policy", parsed(PolicyAnswer), in_namespace=False)


def clear_policy() -> Call[None]:
    """Removes the policy."""
    return Call("DELETE", "/v1/policy", no_body, in_namespace=False)


def list_monitors() -> Call[MonitorList]:
    """Lists the monitors of the policy with their counts."""
    return Call("GET", "/v1/monitors", parsed(MonitorList), in_namespace=False)


def get_monitor(name: str) -> Call[MonitorDetail]:
    """Returns one monitor with the distribution of its scores and its latest raises."""
    return Call("GET", path_of("/v1/monitors/{}", name), parsed(MonitorDetail), in_namespace=False)
