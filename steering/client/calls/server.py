"""Calls for profiles, default steering, jobs, links, concepts, capabilities and health."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue, TypeAdapter

from steering.client.calls.base import Call, Intervention, StreamCall, json_fields, no_body, parsed, path_of
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
    body = json_fields(interventions=interventions, description=description)
    return Call("PUT", path_of("/v1/profiles/{}", name), parsed(ProfileAnswer), body)


def list_profiles() -> Call[ProfileList]:
    """Lists all profiles by name."""
    return Call("GET", "/v1/profiles", parsed(ProfileList))


def get_profile(name: str) -> Call[ProfileAnswer]:
    """Returns one profile."""
    return Call("GET", path_of("/v1/profiles/{}", name), parsed(ProfileAnswer))


def delete_profile(name: str) -> Call[None]:
    """Deletes a profile, not the vectors it names."""
    return Call("DELETE", path_of("/v1/profiles/{}", name), no_body)


def set_default_steering(interventions: Sequence[Intervention]) -> Call[DefaultSteeringAnswer]:
    """Sets the steering of requests that name none."""
    return Call("PUT", "/v1/steering", parsed(DefaultSteeringAnswer), json_fields(interventions=interventions))


def get_default_steering() -> Call[DefaultSteeringAnswer]:
    """Returns the default steering; `interventions` is None when none is set."""
    return Call("GET", "/v1/steering", parsed(DefaultSteeringAnswer))


def clear_default_steering() -> Call[None]:
    """Removes the default steering."""
    return Call("DELETE", "/v1/steering", no_body)


def list_jobs(*, limit: int = 50, cursor: str | None = None) -> Call[JobPage]:
    """Lists jobs, newest first."""
    return Call("GET", "/v1/jobs", parsed(JobPage), query=json_fields(limit=limit, cursor=cursor))


def get_job(job_id: str) -> Call[JobAnswer]:
    """Returns one job."""
    return Call("GET", path_of("/v1/jobs/{}", job_id), parsed(JobAnswer))


def cancel_job(job_id: str) -> Call[JobAnswer]:
    """Cancels a job. A finished job is unchanged."""
    return Call("DELETE", path_of("/v1/jobs/{}", job_id), parsed(JobAnswer))


def job_events(job_id: str) -> StreamCall[JobAnswer]:
    """Streams the progress of a job; the finished job is last."""
    return StreamCall("GET", path_of("/v1/jobs/{}/events", job_id), {"progress": JobAnswer, "done": JobAnswer})


def save_link(view: View, state: Mapping[str, Any]) -> Call[LinkAnswer]:
    """Saves the state of a view of the playground; whoever has the `url` of the answer and a key opens it."""
    return Call("POST", "/v1/links", parsed(LinkAnswer), json_fields(view=view, state=state))


def list_links(*, limit: int = 50, cursor: str | None = None) -> Call[LinkPage]:
    """Lists the links of the namespace, newest first; in `shared` those of the key, for an admin all."""
    return Call("GET", "/v1/links", parsed(LinkPage), query=json_fields(limit=limit, cursor=cursor))


def get_link(link_id: str) -> Call[LinkState]:
    """Returns the state that a link was saved with."""
    return Call("GET", path_of("/v1/links/{}", link_id), parsed(LinkState))


def delete_link(link_id: str) -> Call[None]:
    """Deletes a link."""
    return Call("DELETE", path_of("/v1/links/{}", link_id), no_body)


def list_concepts() -> Call[ConceptList]:
    """Lists the starter concepts."""
    return Call("GET", "/v1/concepts", parsed(ConceptList))


def get_concept(name: str) -> Call[ConceptDetail]:
    """Returns one starter concept with its pairs."""
    return Call("GET", path_of("/v1/concepts/{}", name), parsed(ConceptDetail))


def capabilities() -> Call[CapabilitiesAnswer]:
    """Returns the loaded model, the available operations and methods, and every limit."""
    return Call("GET", "/v1/capabilities", parsed(CapabilitiesAnswer))


def health() -> Call[HealthAnswer]:
    """Returns when the server is ready. Raises ApiError with the reason when it is not."""
    return Call("GET", "/health/ready", parsed(HealthAnswer))


def version() -> Call[VersionAnswer]:
    """Returns the version of the server."""
    return Call("GET", "/version", parsed(VersionAnswer))


def openapi() -> Call[JsonValue]:
    """Returns the OpenAPI document."""
    adapter: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)
    return Call("GET", "/openapi.json", adapter.validate_json)
