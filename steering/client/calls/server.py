"""Calls for profiles, default steering, jobs, links, concepts, capabilities and health, and those of an admin: keys, audit, policy."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import JsonValue, TypeAdapter

from steering.client.calls.base import Call, Intervention, JsonObject, StreamCall, call, delete, path_of
from steering.schemas.generation import BatchResult
from steering.schemas.governance import (
    AuditPage,
    KeyAnswer,
    KeyList,
    MonitorDetail,
    MonitorList,
    NewKeyAnswer,
    PolicyAnswer,
)
from steering.schemas.resources import (
    JobAnswer,
    JobPage,
    LinkAnswer,
    LinkPage,
    LinkState,
    ProfileAnswer,
    ProfileList,
    View,
)
from steering.schemas.steering import DefaultSteeringAnswer
from steering.schemas.system import CapabilitiesAnswer, ConceptDetail, ConceptList, HealthAnswer, VersionAnswer


def put_profile(name: str, interventions: Sequence[Intervention], *, description: str = "") -> Call[ProfileAnswer]:
    """Stores a named list of interventions."""
    body = {"interventions": interventions, "description": description}
    return call("PUT", path_of("/v1/profiles/{}", name), ProfileAnswer, **body)


def list_profiles(*, limit: int = 50, cursor: str | None = None) -> Call[ProfileList]:
    """Lists profiles by name."""
    return call("GET", "/v1/profiles", ProfileList, limit=limit, cursor=cursor)


def get_profile(name: str) -> Call[ProfileAnswer]:
    """Returns one profile."""
    return call("GET", path_of("/v1/profiles/{}", name), ProfileAnswer)


def delete_profile(name: str) -> Call[None]:
    """Deletes a profile, not the vectors it names."""
    return delete(path_of("/v1/profiles/{}", name))


def set_default_steering(interventions: Sequence[Intervention]) -> Call[DefaultSteeringAnswer]:
    """Sets the steering of requests that name none."""
    return call("PUT", "/v1/steering", DefaultSteeringAnswer, interventions=interventions)


def get_default_steering() -> Call[DefaultSteeringAnswer]:
    """Returns the default steering; `interventions` is None when none is set."""
    return call("GET", "/v1/steering", DefaultSteeringAnswer)


def clear_default_steering() -> Call[None]:
    """Removes the default steering."""
    return delete("/v1/steering")


def list_jobs(*, limit: int = 50, cursor: str | None = None) -> Call[JobPage]:
    """Lists jobs, newest first, without their results."""
    return call("GET", "/v1/jobs", JobPage, limit=limit, cursor=cursor)


def get_job(job_id: str) -> Call[JobAnswer]:
    """Returns one job."""
    return call("GET", path_of("/v1/jobs/{}", job_id), JobAnswer)


def cancel_job(job_id: str) -> Call[JobAnswer]:
    """Cancels a job. A finished job is unchanged."""
    return call("DELETE", path_of("/v1/jobs/{}", job_id), JobAnswer)


def job_events(job_id: str) -> StreamCall[JobAnswer]:
    """Streams the progress of a job; the finished job is last."""
    return StreamCall("GET", path_of("/v1/jobs/{}/events", job_id), {"progress": JobAnswer, "done": JobAnswer})


def job_output(job_id: str) -> Call[list[BatchResult]]:
    """Returns the results of a batch in the order of its lines, also while it runs."""
    read = BatchResult.model_validate_json
    path = path_of("/v1/jobs/{}/output", job_id)
    return Call("GET", path, lambda content: [read(line) for line in content.splitlines() if line])


def save_link(view: View, state: Mapping[str, Any]) -> Call[LinkAnswer]:
    """Saves the state of a view of the playground; whoever has the `url` of the answer and a key opens it."""
    return call("POST", "/v1/links", LinkAnswer, view=view, state=state)


def list_links(*, limit: int = 50, cursor: str | None = None) -> Call[LinkPage]:
    """Lists the links of the namespace, newest first; in `shared` those of the key, for an admin all."""
    return call("GET", "/v1/links", LinkPage, limit=limit, cursor=cursor)


def get_link(link_id: str) -> Call[LinkState]:
    """Returns the state that a link was saved with."""
    return call("GET", path_of("/v1/links/{}", link_id), LinkState)


def delete_link(link_id: str) -> Call[None]:
    """Deletes a link."""
    return delete(path_of("/v1/links/{}", link_id))


def list_concepts() -> Call[ConceptList]:
    """Lists the starter concepts."""
    return call("GET", "/v1/concepts", ConceptList)


def get_concept(name: str) -> Call[ConceptDetail]:
    """Returns one starter concept with its pairs."""
    return call("GET", path_of("/v1/concepts/{}", name), ConceptDetail)


def capabilities() -> Call[CapabilitiesAnswer]:
    """Returns the loaded model, the available operations and methods, and every limit."""
    return call("GET", "/v1/capabilities", CapabilitiesAnswer)


def health() -> Call[HealthAnswer]:
    """Returns when the server is ready. Raises ApiError with the reason when it is not."""
    return call("GET", "/health/ready", HealthAnswer)


def version() -> Call[VersionAnswer]:
    """Returns the version of the server."""
    return call("GET", "/version", VersionAnswer)


def openapi() -> Call[JsonValue]:
    """Returns the OpenAPI document."""
    adapter: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)
    return Call("GET", "/openapi.json", adapter.validate_json)


def create_key(
    name: str,
    scopes: Sequence[str],
    *,
    limits: JsonObject | None = None,
    expires_at: str | None = None,
    namespace: str | None = None,
) -> Call[NewKeyAnswer]:
    """Creates a key; the result is the only place where it is shown. namespace: of what it makes, by default `shared`."""
    body = {"name": name, "scopes": list(scopes), "limits": limits, "expires_at": expires_at, "namespace": namespace}
    return call("POST", "/v1/keys", NewKeyAnswer, **body)


def list_keys() -> Call[KeyList]:
    """Lists the keys of the database."""
    return call("GET", "/v1/keys", KeyList)


def change_key(
    key_id: str,
    *,
    name: str | None = None,
    scopes: Sequence[str] | None = None,
    limits: JsonObject | None = None,
    namespace: str | None = None,
    expires_at: str | None = None,
    if_match: str | None = None,
    force: bool = False,
) -> Call[KeyAnswer]:
    """Changes a key. Limits that are not given stay, None removes one. force: also where no admin key would remain.

    if_match: the `etag` of the key as it was read; the server refuses with 412 where it has changed since.
    """
    given = None if scopes is None else list(scopes)
    body = {"name": name, "scopes": given, "limits": limits, "namespace": namespace, "expires_at": expires_at}
    changed = call("PATCH", path_of("/v1/keys/{}", key_id), KeyAnswer, **body)
    return replace(changed, query={"force": True} if force else {}, headers=_if_match(if_match))


def rotate_key(key_id: str, *, old_valid_seconds: int = 0, if_match: str | None = None) -> Call[NewKeyAnswer]:
    """Gives a key a new secret, which only the result shows. old_valid_seconds: how long the old one is valid beside it."""
    path = path_of("/v1/keys/{}/rotate", key_id)
    rotated = call("POST", path, NewKeyAnswer, old_valid_seconds=old_valid_seconds)
    return replace(rotated, headers=_if_match(if_match))


def delete_key(key_id: str, *, force: bool = False, cancel_jobs: bool = False) -> Call[None]:
    """Deletes a key. force: also where no admin key would remain. cancel_jobs: its unfinished jobs are cancelled."""
    path = path_of("/v1/keys/{}", key_id)
    return delete(path, force=force or None, jobs="cancel" if cancel_jobs else None)


def _if_match(etag: str | None) -> dict[str, str]:
    return {} if etag is None else {"If-Match": etag}


def read_audit(*, limit: int = 50, cursor: str | None = None) -> Call[AuditPage]:
    """Lists changes, newest first."""
    return call("GET", "/v1/audit", AuditPage, limit=limit, cursor=cursor)


def set_policy(
    *,
    mandatory: Sequence[Intervention] | None = None,
    monitors: Sequence[JsonObject] | None = None,
    limits: JsonObject | None = None,
) -> Call[PolicyAnswer]:
    """Sets the policy of all traffic as a whole: what is absent is removed."""
    return call("PUT", "/v1/policy", PolicyAnswer, mandatory=mandatory, monitors=monitors, limits=limits)


def get_policy() -> Call[PolicyAnswer]:
    """Returns the policy; without one everything in it is empty."""
    return call("GET", "/v1/policy", PolicyAnswer)


def clear_policy() -> Call[None]:
    """Removes the policy."""
    return delete("/v1/policy")


def list_monitors() -> Call[MonitorList]:
    """Lists the monitors of the policy with their counts."""
    return call("GET", "/v1/monitors", MonitorList)


def get_monitor(name: str) -> Call[MonitorDetail]:
    """Returns one monitor with the distribution of its scores and its latest raises."""
    return call("GET", path_of("/v1/monitors/{}", name), MonitorDetail)
