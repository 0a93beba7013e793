"""Calls about what the server keeps and is: profiles, default steering, jobs, concepts, capabilities, health."""

from collections.abc import Sequence

from pydantic import JsonValue, TypeAdapter

from steering.client.calls.base import Call, Intervention, StreamCall, at, given, model, nothing
from steering.schemas.jobs import JobAnswer, JobPage
from steering.schemas.profiles import ProfileAnswer, ProfileList
from steering.schemas.steering import DefaultSteeringAnswer
from steering.schemas.system import CapabilitiesAnswer, ConceptDetail, ConceptList, HealthAnswer, VersionAnswer


def put_profile(name: str, interventions: Sequence[Intervention], *, description: str = "") -> Call[ProfileAnswer]:
    """Keeps a named set of strengths."""
    body = given(interventions=interventions, description=description)
    return Call("PUT", at("/v1/profiles/{}", name), model(ProfileAnswer), body)


def list_profiles() -> Call[ProfileList]:
    """All profiles, by name."""
    return Call("GET", "/v1/profiles", model(ProfileList))


def get_profile(name: str) -> Call[ProfileAnswer]:
    """One profile."""
    return Call("GET", at("/v1/profiles/{}", name), model(ProfileAnswer))


def delete_profile(name: str) -> Call[None]:
    """Forgets a profile; the vectors it names stay."""
    return Call("DELETE", at("/v1/profiles/{}", name), nothing)


def set_default_steering(interventions: Sequence[Intervention]) -> Call[DefaultSteeringAnswer]:
    """The steering of requests that name none."""
    return Call("PUT", "/v1/steering", model(DefaultSteeringAnswer), given(interventions=interventions))


def get_default_steering() -> Call[DefaultSteeringAnswer]:
    """What it is; `interventions` is None when none is set."""
    return Call("GET", "/v1/steering", model(DefaultSteeringAnswer))


def clear_default_steering() -> Call[None]:
    """Requests that name no steering are unsteered again."""
    return Call("DELETE", "/v1/steering", nothing)


def list_jobs(*, limit: int = 50, cursor: str | None = None) -> Call[JobPage]:
    """Newest first."""
    return Call("GET", "/v1/jobs", model(JobPage), query=given(limit=limit, cursor=cursor))


def get_job(job_id: str) -> Call[JobAnswer]:
    """One job as it stands."""
    return Call("GET", at("/v1/jobs/{}", job_id), model(JobAnswer))


def cancel_job(job_id: str) -> Call[JobAnswer]:
    """Stops it; a job that has ended stays as it is."""
    return Call("DELETE", at("/v1/jobs/{}", job_id), model(JobAnswer))


def job_events(job_id: str) -> StreamCall[JobAnswer]:
    """The job as it goes on, its final record last."""
    return StreamCall("GET", at("/v1/jobs/{}/events", job_id), {"progress": JobAnswer, "done": JobAnswer})


def list_concepts() -> Call[ConceptList]:
    """The starter concepts."""
    return Call("GET", "/v1/concepts", model(ConceptList))


def get_concept(name: str) -> Call[ConceptDetail]:
    """One starter concept with its pairs."""
    return Call("GET", at("/v1/concepts/{}", name), model(ConceptDetail))


def capabilities() -> Call[CapabilitiesAnswer]:
    """The loaded model, the tables of what exists, and every limit."""
    return Call("GET", "/v1/capabilities", model(CapabilitiesAnswer))


def health() -> Call[HealthAnswer]:
    """Whether the server can work; raises with the reason when it cannot."""
    return Call("GET", "/health/ready", model(HealthAnswer))


def version() -> Call[VersionAnswer]:
    """Which release the server is."""
    return Call("GET", "/version", model(VersionAnswer))


def openapi() -> Call[JsonValue]:
    """The OpenAPI document."""
    adapter: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)
    return Call("GET", "/openapi.json", adapter.validate_json)
