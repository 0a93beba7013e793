"""/v1/profiles and /v1/steering: named strengths, and the default steering."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from app.http.dependencies import ContextDep
from app.http.request_reading import ApiRoute
from app.services import profiles
from app.services.resources import profile_answer
from steering.schemas.base import NamespacePageQuery
from steering.schemas.resources import ProfileAnswer, ProfileList, ProfileRequest
from steering.schemas.steering import DefaultSteering, DefaultSteeringAnswer
from steering.vectors import check_name

router = APIRouter(route_class=ApiRoute, tags=["profiles"])


@router.put("/v1/profiles/{name}", response_model_exclude_unset=True)
async def put(name: str, body: ProfileRequest, context: ContextDep) -> ProfileAnswer:
    """Stores a profile under a name. Its steering must be valid for the loaded model."""
    return profile_answer(await profiles.put(context, name, body))


@router.get("/v1/profiles", response_model=ProfileList)
async def find(query: Annotated[NamespacePageQuery, Query()], context: ContextDep) -> Response:
    """Lists profiles, by name."""
    return await profiles.find(context, query)


@router.get("/v1/profiles/{name}", response_model_exclude_unset=True)
async def read(name: str, context: ContextDep) -> ProfileAnswer:
    """Returns one profile."""
    return profile_answer(await context.profile(check_name(name)))


@router.delete("/v1/profiles/{name}", status_code=204)
async def delete(name: str, context: ContextDep) -> None:
    """Deletes a profile. The vectors it names are kept."""
    await profiles.delete(context, name)


@router.put("/v1/steering", response_model_exclude_unset=True)
async def put_default(body: DefaultSteering, context: ContextDep) -> DefaultSteeringAnswer:
    """Sets the steering of requests that name none. It must be valid for the loaded model."""
    return await profiles.put_default(context, body.interventions)


@router.get("/v1/steering", response_model_exclude_unset=True)
async def read_default(context: ContextDep) -> DefaultSteeringAnswer:
    """Returns the default steering; null when none is set."""
    return await profiles.read_default(context)


@router.delete("/v1/steering", status_code=204)
async def delete_default(context: ContextDep) -> None:
    """Clears the default steering."""
    await profiles.clear_default(context)
