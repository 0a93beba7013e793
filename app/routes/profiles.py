"""/v1/profiles: named strengths kept on the server."""

from fastapi import APIRouter

from app.http.dependencies import StateDep, StoreDep, resolved
from app.http.request_reading import ApiRoute
from app.services.responses import profile_answer
from steering.schemas.profiles import ProfileAnswer, ProfileList, ProfileRequest
from steering.spec import SteeringSpec
from steering.store.base import Profile
from steering.vectors import check_name

router = APIRouter(route_class=ApiRoute, tags=["profiles"])


@router.put("/v1/profiles/{name}", response_model_exclude_unset=True)
async def put(name: str, body: ProfileRequest, state: StateDep, store: StoreDep) -> ProfileAnswer:
    """Keeps a profile under a name; it must be possible on the loaded model."""
    spec = SteeringSpec(interventions=body.interventions)
    check_name(name)
    await resolved(state, spec)
    return profile_answer(await store.profiles.put(Profile(name, spec, body.description)))


@router.get("/v1/profiles", response_model_exclude_unset=True)
async def find(store: StoreDep) -> ProfileList:
    """All profiles, by name."""
    return ProfileList(data=[profile_answer(profile) for profile in await store.profiles.all()], next_cursor=None)


@router.get("/v1/profiles/{name}", response_model_exclude_unset=True)
async def read(name: str, store: StoreDep) -> ProfileAnswer:
    """One profile."""
    return profile_answer(await store.profiles.get(check_name(name)))


@router.delete("/v1/profiles/{name}", status_code=204)
async def delete(name: str, store: StoreDep) -> None:
    """Forgets a profile; the vectors it names stay."""
    await store.profiles.delete(check_name(name))
